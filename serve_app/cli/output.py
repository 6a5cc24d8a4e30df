"""How answers are printed: for people in columns, for programs as JSON, JSON lines or CSV."""

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

Rows = Sequence[Mapping[str, Any]]

_NUMBER = re.compile(r"-?[0-9.]+")


def say(line: str) -> None:
    """Beside the answer: on standard error."""
    typer.echo(line, err=True)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(row: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(row, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Rows) -> None:
    """Columns as wide as their longest value; numbers stand to the right."""
    texts = [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    numeric = [all(_NUMBER.fullmatch(text) for text in column) for column in zip(*texts, strict=True)] or [False] * len(
        columns
    )
    for line in (columns, *texts):
        cells = zip(line, widths, numeric, strict=True)
        typer.echo(
            "  ".join(f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell, width, right in cells).rstrip()
        )


class CsvPrinter:
    """Prints rows as CSV, with a first line that names the columns."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        self._writer.writeheader()

    def print(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow(row)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
