"""Markdown tables of a run's figures. Pure: from records to text."""

from collections.abc import Callable, Iterable, Sequence

from load_tests.contender import IN_PROCESS
from load_tests.figures import CellFigures, cell_figures, prefill_figures, process_figures, repeat_figures
from load_tests.plan import ADDED_CHARACTERS, REPEATED_CHARACTERS
from load_tests.records import FailureRecord, Record, RunRecord, of_type


def make_tables(records: Sequence[Record]) -> str:
    """The whole page. Raises ValueError where there is nothing to show."""
    cells = cell_figures(records)
    if not cells:
        raise ValueError("the records hold no cell")
    parts = [
        "# Figures of a run",
        "Made from [raw.jsonl](raw.jsonl) by `python -m load_tests.report`; do not edit. Medians over rounds.",
        *(_run(record) for record in of_type(records, RunRecord)),
        "## Output tokens per second, prompts included in the time",
        _throughput(cells),
        "## Milliseconds to the first token: median, 95th percentile",
        _by_clients(cells, lambda one: f"{one.ttft_p50_ms:.0f}, {one.ttft_p95_ms:.0f}"),
        *_added(cells),
        "## Milliseconds per token after the first, median",
        _by_clients(cells, lambda one: f"{one.per_token_p50_ms:.1f}"),
        "## How steady it was: tokens per second of the slowest and fastest round, and the rounds",
        _by_clients(cells, lambda one: f"{one.slowest:.0f} to {one.fastest:.0f} ({one.num_rounds})"),
        "## What else ran on the machine: most cores in a round",
        _by_clients(cells, lambda one: f"{one.other_cores:.2f}"),
        *_processes(records),
        *_prefill(records),
        *_repeats(records),
        *_failures(records),
    ]
    return "\n\n".join(parts) + "\n"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _run(record: RunRecord) -> str:
    machine = {
        name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in record.machine.items()
    }
    lines = [f"Begun {record.started_at}: `{record.command}`", table(["machine", ""], machine.items())]
    versions = [
        [contender, ", ".join(f"{name} {version}" for name, version in found.items())]
        for contender, found in record.versions.items()
    ]
    return "\n\n".join([*lines, table(["measured", "versions"], versions)])


def _throughput(cells: dict[str, dict[int, CellFigures]]) -> str:
    """With the ratio to the first contender, which is what can be compared between machines."""
    reference = next(iter(cells))
    concurrencies = _concurrencies(cells)
    heading = ["", *(_clients(number) for number in concurrencies), f"{reference} ÷ this"]
    rows = []
    for contender, by_concurrency in cells.items():
        ratios = [
            f"{cells[reference][number].tokens_per_s / by_concurrency[number].tokens_per_s:.1f}"
            for number in concurrencies
            if number in by_concurrency and number in cells[reference]
        ]
        speeds = [_cell(by_concurrency, number, lambda one: f"{one.tokens_per_s:.0f}") for number in concurrencies]
        rows.append([contender, *speeds, "" if contender == reference else ", ".join(ratios)])
    return table(heading, rows)


def _by_clients(cells: dict[str, dict[int, CellFigures]], show: Callable[[CellFigures], str]) -> str:
    concurrencies = _concurrencies(cells)
    return table(
        ["", *(_clients(number) for number in concurrencies)],
        ([contender, *(_cell(found, number, show) for number in concurrencies)] for contender, found in cells.items()),
    )


def _processes(records: Sequence[Record]) -> list[str]:
    figures = process_figures(records)
    if not figures:
        return []
    rows = [
        [contender, f"{one.first_token_s:.1f}", f"{one.pss_mib:.0f}", f"{one.largest_peak_mib:.0f}"]
        for contender, one in figures.items()
    ]
    heading = ["", "start to first token (s)", "memory of all processes (MiB)", "peak of the largest process (MiB)"]
    return ["## Start and memory, after the load with the most clients", table(heading, rows)]


def _prefill(records: Sequence[Record]) -> list[str]:
    figures = prefill_figures(records)
    if not figures:
        return []
    lengths = sorted({length for by_length in figures.values() for length in by_length})
    rows = [
        [contender, *(f"{by_length[length]:.0f}" if length in by_length else "" for length in lengths)]
        for contender, by_length in figures.items()
    ]
    return ["## Prompt tokens per second of a prompt alone", table(["", *(f"{one} tokens" for one in lengths)], rows)]


def _repeats(records: Sequence[Record]) -> list[str]:
    figures = repeat_figures(records)
    if not figures:
        return []
    rows = [
        [contender, f"{first:.0f}", f"{again:.0f}", f"{first / again:.1f}"]
        for contender, (first, again) in figures.items()
    ]
    return [
        f"## A prompt of {REPEATED_CHARACTERS:,} characters, and again with {ADDED_CHARACTERS} more after it",
        table(["", "first token (ms)", "first token when repeated (ms)", "times sooner"], rows),
    ]


def _added(cells: dict[str, dict[int, CellFigures]]) -> list[str]:
    """What a service adds to its own engine, of those of which both were measured."""
    services = {name: cells[name + IN_PROCESS] for name in cells if name + IN_PROCESS in cells}
    if not services:
        return []

    def show(name: str, number: int) -> str:
        if number not in cells[name] or number not in services[name]:
            return ""
        around, alone = cells[name][number], services[name][number]
        return f"{around.ttft_p50_ms - alone.ttft_p50_ms:.0f}, {around.ttft_p95_ms - alone.ttft_p95_ms:.0f}"

    concurrencies = _concurrencies(cells)
    return [
        "## Milliseconds to the first token that a service adds to its engine: to the median, to the 95th percentile",
        table(
            ["", *(_clients(number) for number in concurrencies)],
            ([name, *(show(name, number) for number in concurrencies)] for name in services),
        ),
    ]


def _failures(records: Sequence[Record]) -> list[str]:
    failures = of_type(records, FailureRecord)
    if not failures:
        return []
    lines = [f"- {one.contender}, round {one.round + 1}: {' '.join(one.reason.split())[:300]}" for one in failures]
    return ["## Not measured", "\n".join(lines)]


def _concurrencies(cells: dict[str, dict[int, CellFigures]]) -> list[int]:
    return sorted({number for by_concurrency in cells.values() for number in by_concurrency})


def _clients(number: int) -> str:
    return f"{number} client" if number == 1 else f"{number} clients"


def _cell(by_concurrency: dict[int, CellFigures], number: int, show: Callable[[CellFigures], str]) -> str:
    return show(by_concurrency[number]) if number in by_concurrency else ""
