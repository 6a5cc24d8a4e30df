"""What a soak writes down, a JSON object a line: the run, a moment each minute, the end. Knows no service."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load_tests.service_soak.books import Books
from load_tests.service_soak.census import Held


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, when, on which machine."""

    command: str
    started_at: str
    machine: Mapping[str, Any]
    clients: int


@dataclass(frozen=True, slots=True)
class Moment:
    """The service while it works. at_s: since the load began; sizes in bytes; `requests`, `tokens`-bearing ones too,
    since the beginning; first_token_ms: the median of the streams since the moment before."""

    at_s: float
    processes: tuple[Held, ...]
    books: Books
    home_bytes: int
    wal_bytes: int
    logs_bytes: int
    requests: int
    faults: int
    problems: int
    first_token_ms: float | None


@dataclass(frozen=True, slots=True)
class Ending:
    """After the load: what is left when nothing runs any more, and what was found wrong. `answers` are counts by
    `kind status`, `ends` by how requests that may cost something ended, `errors` lines of the service's logs."""

    books: Books
    answers: Mapping[str, int]
    ends: Mapping[str, int]
    problems: Sequence[str]
    num_repeated: int
    num_different_requests: int
    models_trained: int
    jobs_cancelled: int
    webhooks_received: int
    errors: Sequence[str]


Record = Run | Moment | Ending


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": type(record).__name__.lower(), **asdict(record)}) + "\n")


def read(path: Path) -> tuple[Run, list[Moment], Ending | None]:
    """Raises ValueError where the first record is not the run's."""
    run, moments, ending = None, [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        match content.pop("kind"):
            case "run":
                run = Run(**content)
            case "moment":
                processes = tuple(Held(**one) for one in content.pop("processes"))
                moments.append(Moment(processes=processes, books=_books(content.pop("books")), **content))
            case "ending":
                ending = Ending(books=_books(content.pop("books")), **content)
    if run is None:
        raise ValueError(f"{path} does not say what was run")
    return run, moments, ending


def _books(content: dict[str, Any]) -> Books:
    return Books(**content | {"disagreements": tuple(content["disagreements"])})
