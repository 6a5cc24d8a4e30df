"""Writes the tables and plots of a run from its raw records: `python -m load_tests.report DIRECTORY`."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from load_tests.figures import CellFigures, cell_figures
from load_tests.records import Record, read
from load_tests.tables import make_tables

RAW_NAME = "raw.jsonl"

# Text stays text, and no random or dated part gets in: the same records make the same file.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tritext",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_report(directory: Path) -> None:
    """tables.md, tokens-per-second.svg and first-token.svg beside the raw records. Raises ValueError without a cell."""
    records = read(directory / RAW_NAME)
    (directory / "tables.md").write_text(make_tables(records), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        save(_plot_throughput(records), directory / "tokens-per-second.svg")
        save(_plot_first_token(records), directory / "first-token.svg")


def _plot_throughput(records: Sequence[Record]) -> Figure:
    """A group of bars for each number of clients, a bar for each contender."""
    cells = cell_figures(records)
    concurrencies = _concurrencies(cells)
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.85 / len(cells)
    for index, (contender, figures) in enumerate(cells.items()):
        shown = [number for number in concurrencies if number in figures]
        places = [concurrencies.index(number) + width * (index - (len(cells) - 1) / 2) for number in shown]
        bars = axes.bar(places, [figures[number].tokens_per_s for number in shown], width, label=contender)
        axes.bar_label(bars, fmt="%.0f", fontsize=6)
    axes.set_xticks(range(len(concurrencies)), [str(number) for number in concurrencies])
    axes.set_xlabel("clients")
    axes.set_ylabel("output tokens per second")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _plot_first_token(records: Sequence[Record]) -> Figure:
    """For each contender a line of medians, and up from it to the 95th percentile; the scale is logarithmic."""
    cells = cell_figures(records)
    concurrencies = _concurrencies(cells)
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for index, (contender, figures) in enumerate(cells.items()):
        shown = [number for number in concurrencies if number in figures]
        places = [concurrencies.index(number) + 0.05 * (index - (len(cells) - 1) / 2) for number in shown]
        medians = [figures[number].ttft_p50_ms for number in shown]
        above = [max(0.0, figures[number].ttft_p95_ms - figures[number].ttft_p50_ms) for number in shown]
        none = [0.0] * len(shown)
        axes.errorbar(places, medians, yerr=[none, above], marker="o", markersize=4, capsize=3, label=contender)
    axes.set_yscale("log")
    axes.set_xticks(range(len(concurrencies)), [str(number) for number in concurrencies])
    axes.set_xlabel("clients")
    axes.set_ylabel("ms to the first token: median to 95th percentile")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _concurrencies(cells: dict[str, dict[int, CellFigures]]) -> list[int]:
    return sorted({number for figures in cells.values() for number in figures})


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    # Trailing blanks, which matplotlib leaves on many lines, are noise to version control.
    path.write_text(re.sub(r"[ \t]+\n", "\n", path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help=f"where {RAW_NAME} lies and the report goes")
    write_report(parser.parse_args().directory)


if __name__ == "__main__":
    main()
