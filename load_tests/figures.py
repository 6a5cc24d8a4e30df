"""Figures from raw records: percentiles within a cell, medians over rounds. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from load_tests.records import CellRecord, MemoryRecord, PrefillRecord, Record, RepeatRecord, StartRecord, of_type


@dataclass(frozen=True, slots=True)
class CellFigures:
    """A contender with so many clients, medians over `num_rounds`; `slowest` and `fastest` are tokens/s of a round.

    The time to the first token runs from sending a request, the time per token between its first and last token.
    `other_cores`: the most, in a round, that anything else on the machine took of its processor cores.
    """

    num_rounds: int
    tokens_per_s: float
    slowest: float
    fastest: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    per_token_p50_ms: float
    other_cores: float


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Medians: start to first token; memory after the load with the most clients (see MemoryRecord)."""

    first_token_s: float
    pss_mib: float
    largest_peak_mib: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values in proportion. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def cell_figures(records: Sequence[Record]) -> dict[str, dict[int, CellFigures]]:
    """By contender, in the order of the records, and number of clients."""
    grouped: dict[str, dict[int, list[CellRecord]]] = defaultdict(lambda: defaultdict(list))
    for cell in of_type(records, CellRecord):
        grouped[cell.contender][cell.concurrency].append(cell)
    return {
        contender: {concurrency: _over_rounds(cells) for concurrency, cells in sorted(by_concurrency.items())}
        for contender, by_concurrency in grouped.items()
    }


def process_figures(records: Sequence[Record]) -> dict[str, ProcessFigures]:
    """By contender, of those with records of a start and of memory."""
    starts: dict[str, list[StartRecord]] = defaultdict(list)
    memories: dict[str, list[MemoryRecord]] = defaultdict(list)
    for start in of_type(records, StartRecord):
        starts[start.contender].append(start)
    for memory in of_type(records, MemoryRecord):
        memories[memory.contender].append(memory)
    found = {}
    for contender in starts:
        if contender in memories:
            most = max(one.concurrency for one in memories[contender])
            loaded = [one for one in memories[contender] if one.concurrency == most]
            found[contender] = ProcessFigures(
                first_token_s=statistics.median(one.first_token_s for one in starts[contender]),
                pss_mib=statistics.median(one.pss_mib for one in loaded),
                largest_peak_mib=statistics.median(one.largest_peak_mib for one in loaded),
            )
    return found


def prefill_figures(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """Median prompt tokens per second, by contender and length."""
    grouped: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in of_type(records, PrefillRecord):
        grouped[record.contender][record.num_prompt_tokens] += record.seconds
    return {
        contender: {length: length / statistics.median(seconds) for length, seconds in sorted(by_length.items())}
        for contender, by_length in grouped.items()
    }


def repeat_figures(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """Median milliseconds to the first token of a long prompt, and of the prompt repeated, by contender."""
    first: dict[str, list[float]] = defaultdict(list)
    again: dict[str, list[float]] = defaultdict(list)
    for record in of_type(records, RepeatRecord):
        first[record.contender] += record.first_s
        again[record.contender] += record.again_s
    return {name: (statistics.median(first[name]) * 1000, statistics.median(again[name]) * 1000) for name in first}


def _over_rounds(cells: Sequence[CellRecord]) -> CellFigures:
    speeds = [tokens_per_s(cell) for cell in cells]

    def median(figure: Callable[[CellRecord], float]) -> float:
        return statistics.median(figure(cell) for cell in cells)

    return CellFigures(
        num_rounds=len(cells),
        tokens_per_s=statistics.median(speeds),
        slowest=min(speeds),
        fastest=max(speeds),
        ttft_p50_ms=median(lambda cell: percentile(_first_token_ms(cell), 50)),
        ttft_p95_ms=median(lambda cell: percentile(_first_token_ms(cell), 95)),
        per_token_p50_ms=median(lambda cell: percentile(_per_token_ms(cell), 50)),
        other_cores=max(cell.other_cpu_s / cell.wall_s for cell in cells),
    )


def tokens_per_s(cell: CellRecord) -> float:
    """Output tokens of all requests by the time from the first's sending to the last's end."""
    return sum(sample.num_tokens for sample in cell.samples) / cell.wall_s


def _first_token_ms(cell: CellRecord) -> list[float]:
    return [sample.first_token_s * 1000 for sample in cell.samples]


def _per_token_ms(cell: CellRecord) -> list[float]:
    return [(one.last_s - one.first_s) / max(1, one.num_tokens - 1) * 1000 for one in cell.samples]
