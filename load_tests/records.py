"""The raw records of a run: what they hold and how they lie in a file, one JSON object a line. Knows no server.

Every figure of a report can be computed again from them. `kind` tells which record a line is.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class Sample:
    """A request. Seconds, from when the cell began: sent, first and last token seen; `num_tokens` came out of it."""

    sent_s: float
    first_s: float
    last_s: float
    num_tokens: int

    @property
    def first_token_s(self) -> float:
        """From the request on."""
        return self.first_s - self.sent_s


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What was run: the command, when, on which machine, with which versions. The first line of a file."""

    command: str
    started_at: str
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    """By contender."""


@dataclass(frozen=True, slots=True)
class StartRecord:
    """From starting the contender's process to the first token that it generated."""

    contender: str
    round: int
    first_token_s: float


@dataclass(frozen=True, slots=True)
class CellRecord:
    """So many clients, each of which sent its next request when its last one had ended.

    `client_cpu_s`, `server_cpu_s` and `other_cpu_s` are the processor seconds of the load generator, of the contender's
    processes and of everything else on the machine (what the host took included): much of the last spoils a cell.
    """

    contender: str
    round: int
    concurrency: int
    wall_s: float
    client_cpu_s: float
    server_cpu_s: float
    other_cpu_s: float
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class PrefillRecord:
    """Seconds from a request alone, of so many prompt tokens, to its first token, repeated."""

    contender: str
    round: int
    num_prompt_tokens: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RepeatRecord:
    """Seconds to the first token of a long prompt alone, and of the same prompt again with some text after it."""

    contender: str
    round: int
    first_s: tuple[float, ...]
    again_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """Memory after the load, in MiB.

    `pss_mib` sums the processes with shared pages counted once; `largest_peak_mib` is the peak of the resident set of
    the process that had the highest, which is the one that holds the model, and `largest_process` its name.
    """

    contender: str
    round: int
    concurrency: int
    pss_mib: int
    largest_peak_mib: int
    largest_process: str


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """Why a contender has no figures, or has none from here on in this round."""

    contender: str
    round: int
    reason: str


Record = RunRecord | StartRecord | CellRecord | PrefillRecord | RepeatRecord | MemoryRecord | FailureRecord
T = TypeVar("T", bound=Record)

_KINDS: dict[str, type[Record]] = {
    "run": RunRecord,
    "start": StartRecord,
    "cell": CellRecord,
    "prefill": PrefillRecord,
    "repeat": RepeatRecord,
    "memory": MemoryRecord,
    "failure": FailureRecord,
}
_NAMES = {record_type: kind for kind, record_type in _KINDS.items()}


def to_line(record: Record) -> str:
    """A line of JSON with its line feed. Samples are lists in the order of their fields, times to 10 microseconds."""
    content: dict[str, Any] = {"kind": _NAMES[type(record)]} | asdict(record)
    if isinstance(record, CellRecord):
        content["samples"] = [[round(value, 5) for value in astuple(one)] for one in record.samples]
    return json.dumps(content) + "\n"


def from_line(line: str) -> Record:
    """The record of a line that `to_line` made. Raises ValueError for anything else."""
    content = json.loads(line)
    record_type = _KINDS.get(content.pop("kind", None))
    if record_type is None:
        raise ValueError(f"no record: {line[:100]!r}")
    if record_type is CellRecord:
        content["samples"] = tuple(Sample(*values) for values in content["samples"])
    if record_type is PrefillRecord:
        content["seconds"] = tuple(content["seconds"])
    if record_type is RepeatRecord:
        content |= {name: tuple(content[name]) for name in ("first_s", "again_s")}
    try:
        return record_type(**content)
    except TypeError as error:
        raise ValueError(f"no record: {line[:100]!r}") from error


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(to_line(record))


def read(path: Path) -> list[Record]:
    with path.open(encoding="utf-8") as file:
        return [from_line(line) for line in file]


def of_type(records: Sequence[Record], record_type: type[T]) -> list[T]:
    return [record for record in records if isinstance(record, record_type)]
