"""Measures servers side by side over HTTP with streaming: `python -m load_tests.bench tritext llamacpp`.

The servers take turns, `--rounds` times, so that whatever else the machine does meets all of them alike. Every round's
figures are appended to the file of raw records; the table that is printed shows medians over the rounds.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from load_tests.prompts import prompts
from load_tests.servers import SERVERS, Server
from load_tests.traffic import Cell, run_cell

_REQUESTS = {1: 8, 8: 24, 32: 96}


async def measure(server: Server, concurrencies: list[int]) -> list[Cell]:
    """A cell for each concurrency, after a warm-up at the same concurrency."""
    cells = []
    for concurrency in concurrencies:
        await run_cell(server.target, prompts(), concurrency=concurrency, num_requests=max(2, concurrency))
        num_requests = _REQUESTS.get(concurrency, 3 * concurrency)
        cells.append(await run_cell(server.target, prompts(), concurrency=concurrency, num_requests=num_requests))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", choices=sorted(SERVERS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--raw", type=Path, default=Path("docs/benchmarks/raw.jsonl"), help="where records are appended"
    )
    arguments = parser.parse_args()

    table: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    arguments.raw.parent.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.rounds):
        for name in arguments.servers:
            with SERVERS[name]() as server:
                cells = asyncio.run(measure(server, arguments.concurrency))
            with arguments.raw.open("a", encoding="utf-8") as raw:
                for cell in cells:
                    record = {"server": server.name, "round": number, "start_s": round(server.start_s, 2)}
                    record |= asdict(cell) | {"at": int(time.time()), "machine": platform.processor() or "unknown"}
                    raw.write(json.dumps(record) + "\n")
                    table[server.name][cell.concurrency].append(cell)
    _print(table)


def _print(table: dict[str, dict[int, list[Cell]]]) -> None:
    lines = [
        "| server | clients | tokens/s | first token p50, p95 (ms) | per token p50 (ms) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, by_concurrency in table.items():
        for concurrency, cells in by_concurrency.items():
            figures = [
                statistics.median(getattr(cell, field) for cell in cells)
                for field in ("tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "time_per_token_p50_ms")
            ]
            lines.append(
                f"| {name} | {concurrency} | {figures[0]:.0f} | {figures[1]:.0f}, {figures[2]:.0f} | {figures[3]:.1f} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
