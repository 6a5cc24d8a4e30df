"""Writes page and plots of a soak from its raw records: `python -m load_tests.service_soak.report DIRECTORY`."""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from load_tests.report import STYLE, save
from load_tests.service_soak.census import Held
from load_tests.service_soak.records import Ending, Moment, Run, read
from load_tests.service_soak.verdict import FDS, MEMORY, MIB, faults, growths, judged
from load_tests.tables import table

RAW_NAME = "raw.jsonl"
_SHOWN_PROBLEMS = 50


def write_report(directory: Path) -> list[str]:
    """soak.md, memory.svg and load.svg beside the raw records; returns the faults. Raises ValueError without an end."""
    run, moments, ending = read(directory / RAW_NAME)
    if ending is None:
        raise ValueError(f"the soak of {directory} did not come to its end")
    found = faults(moments, ending)
    (directory / "soak.md").write_text(page(run, moments, ending, found), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        save(_plot_memory(moments), directory / "memory.svg")
        save(_plot_load(moments), directory / "load.svg")
    return found


def page(run: Run, moments: Sequence[Moment], ending: Ending, found: Sequence[str]) -> str:
    part = judged(moments)
    requests = part[-1].requests - part[0].requests
    minutes = moments[-1].at_s / 60
    parts = [
        "# A soak of the service",
        "Made from [raw.jsonl](raw.jsonl) by `python -m load_tests.service_soak.report`; do not edit.",
        f"Begun {run.started_at}: `{run.command}`; {minutes:.0f} minutes, {run.clients} clients, "
        f"{moments[-1].requests} requests. **{'Sound' if not found else 'NOT SOUND'}.**",
        *(["\n".join(f"- {one}" for one in found[:_SHOWN_PROBLEMS])] if found else []),
        table(["machine", ""], ([name, str(value)] for name, value in run.machine.items())),
        "![Memory of the processes](memory.svg)",
        "![Requests, first tokens, open reservations](load.svg)",
        f"## Growth in the last two thirds: {(part[-1].at_s - part[0].at_s) / 60:.0f} minutes, {requests} requests",
        _growth_table(moments),
        "## What was asked, and how it was answered",
        _answers(ending),
        "## What was compared",
        _compared(ending),
        "## Disk",
        _disk(moments),
    ]
    return "\n\n".join(parts) + "\n"


def _growth_table(moments: Sequence[Moment]) -> str:
    """A row for each process: first and last quarter of the judged part, and by how much it grew."""
    rows: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for one in growths(moments):
        grown = one.spell(one.grown)
        rows[one.role, one.pid][one.what] = (
            f"{one.spell(one.first)}, {one.spell(one.last)}; {grown if one.is_flat else f'**{grown}**'}"
        )
    columns = [MEMORY, FDS, "threads", "number"]
    heading = ["", *columns]
    return (
        "Medians of the first and of the last quarter; then by how much the line through all moments rises.\n\n"
        + table(heading, ([role, *(found.get(name, "") for name in columns)] for (role, _), found in rows.items()))
    )


def _answers(ending: Ending) -> str:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for answer, count in sorted(ending.answers.items()):
        kind, _, status = answer.rpartition(" ")
        by_kind[kind].append(f"{count} times {status if status != '0' else 'not waited for'}")
    return table(["request", "answers"], ([kind, ", ".join(found)] for kind, found in by_kind.items()))


def _compared(ending: Ending) -> str:
    books = ending.books
    rows = [
        ["requests that may cost something, by how they ended", _counts(ending.ends)],
        ["settled lines of the ledger, each compared with what its client received", str(books.settled)],
        ["open reservations, running idempotent requests, undelivered webhooks, open jobs at the end",
         f"{books.open_reservations}, {books.running_idempotent}, {books.pending_webhooks}, {books.open_jobs}"],
        ["requests with a seed, and how many different ones: each gave the same text every time",
         f"{ending.num_repeated}, {ending.num_different_requests}"],
        ["models trained, jobs cancelled, webhooks received",
         f"{ending.models_trained}, {ending.jobs_cancelled}, {ending.webhooks_received}"],
        ["answers kept under an Idempotency-Key", str(books.kept_answers)],
        ["errors in the logs", str(len(ending.errors))],
    ]  # fmt: skip
    return table(["", ""], rows)


def _disk(moments: Sequence[Moment]) -> str:
    shown = [moments[0], moments[len(moments) // 2], moments[-1]]
    rows = [
        [f"{one.at_s / 60:.0f}", *(f"{size / MIB:.1f}" for size in (one.home_bytes, one.wal_bytes, one.logs_bytes))]
        for one in shown
    ]
    return table(["minute", "data directory (MiB)", "of it the write-ahead log", "logs and sockets"], rows)


def _counts(counts: object) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())  # type: ignore[attr-defined]


def _plot_memory(moments: Sequence[Moment]) -> Figure:
    """A line for each role: the sum of its processes, pages that are shared counted once."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    _lines(axes, moments, lambda held: held.pss / MIB, least=20)
    axes.set_ylabel("memory (MiB)")
    axes.set_xlabel("minutes")
    axes.set_yscale("log")
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _plot_load(moments: Sequence[Moment]) -> Figure:
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    minutes = [moment.at_s / 60 for moment in moments]
    speeds = [(later.requests - one.requests) / (later.at_s - one.at_s) for one, later in pairwise(moments)]
    series: tuple[tuple[str, list[float], list[float | None]], ...] = (
        ("requests in a second", minutes[1:], [*speeds]),
        ("first token, median (ms)", minutes, [moment.first_token_ms for moment in moments]),
        ("open reservations", minutes, [moment.books.open_reservations for moment in moments]),
        ("file descriptors", minutes, [sum(held.fds for held in moment.processes) for moment in moments]),
    )
    for number, (name, times, values) in enumerate(series):
        axes = figure.add_subplot(len(series), 1, number + 1)
        axes.plot(times, [float("nan") if value is None else value for value in values])
        axes.set_ylabel(name, fontsize=7)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    return figure


def _lines(axes: Axes, moments: Sequence[Moment], size: Callable[[Held], float], *, least: float) -> None:
    roles = sorted({held.role for moment in moments for held in moment.processes})
    minutes = [moment.at_s / 60 for moment in moments]
    for role in roles:
        values = [sum(size(held) for held in moment.processes if held.role == role) for moment in moments]
        if max(values) >= least:
            axes.plot(minutes, [value or float("nan") for value in values], label=role)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help=f"where {RAW_NAME} lies and the report goes")
    write_report(parser.parse_args().directory)


if __name__ == "__main__":
    main()
