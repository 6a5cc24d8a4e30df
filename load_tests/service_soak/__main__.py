"""Starts the service in a data directory of its own, loads it, looks at it each minute, and judges what it saw.

Writes raw records, a page and plots to the directory; the exit status is 0 where everything was as it must be.
"""

import argparse
import asyncio
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from load_tests.http_server import HttpServer
from load_tests.machine import describe_machine
from load_tests.own import new_home, serving
from load_tests.service_soak.books import Books, read_books, read_lines
from load_tests.service_soak.census import census, directory_bytes
from load_tests.service_soak.exchange import fault_of
from load_tests.service_soak.findings import Findings
from load_tests.service_soak.load import Load, median_ms, running_load
from load_tests.service_soak.records import Ending, Moment, Run, append
from load_tests.service_soak.report import RAW_NAME, write_report
from serve_app.launcher.local_state import make_runtime_dir

_LOCAL = Path(__file__).parents[2] / "infra/serve/local.yaml"
_SETTLE_S = 60
_QUIET_S = 30
"""How long nothing may be open, kept or sent any more before it counts as left; retries of webhooks take 5 seconds."""
_MEASUREMENTS = re.compile(r"^Measurements for Prometheus: (\S+)$", re.MULTILINE)

# Caches so small that they are full, and give up what they hold, from the first minutes on. The receiver is on this
# machine, and the documents are few.
_ARGS: Mapping[str, Any] = {
    "graph": {"adapters": {"device_bytes": 8 << 20, "host_bytes": 8 << 20, "disk_bytes": 32 << 20}},
    "webhooks": {"allowed_networks": ["127.0.0.0/8"]},
    "fine_tuning": {"min_generator_bytes": 1},
}


@dataclass(frozen=True, slots=True)
class Soaked:
    """The service under load, and where it keeps things."""

    server: HttpServer
    home: Path

    @property
    def database(self) -> Path:
        return self.home / "tritext.db"

    @property
    def runtime_dir(self) -> Path:
        return make_runtime_dir(self.home)

    def measurements(self) -> str:
        """The address that it has printed. Raises LookupError."""
        found = _MEASUREMENTS.search(self.server.program.log.read_text(encoding="utf-8"))
        if found is None:
            raise LookupError("the service has not said where its measurements are")
        return found[1]

    def moment(self, at_s: float, findings: Findings) -> Moment:
        return Moment(
            at_s=round(at_s, 1),
            processes=tuple(census(psutil.Process(self.server.program.process.pid))),
            books=read_books(self.database),
            home_bytes=directory_bytes(self.home),
            wal_bytes=self.database.with_name("tritext.db-wal").stat().st_size,
            logs_bytes=directory_bytes(self.runtime_dir),
            requests=findings.answers.total(),
            faults=findings.num_faults,
            problems=len(findings.problems),
            first_token_ms=median_ms(findings.take_first_s()),
        )

    def errors(self) -> Iterator[str]:
        """Lines of Serve's logs that tell of an error, and the last line of each traceback."""
        for log in sorted((self.runtime_dir / "ray/session_latest/logs/serve").glob("*.log*")):
            in_traceback = False
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                if in_traceback and line[:1].strip():
                    in_traceback = False
                    yield f"{log.name}: {line[:300]}"
                elif line.startswith("Traceback"):
                    in_traceback = True
                elif line.startswith(("ERROR", "CRITICAL")):
                    yield f"{log.name}: {line[:300]}"


@contextmanager
def soaked() -> Iterator[Soaked]:
    """The service of `local.yaml` with other bounds, from its first token on."""
    document = yaml.safe_load(_LOCAL.read_text(encoding="utf-8"))
    args = document["applications"][0]["args"]
    for name, settings in _ARGS.items():
        args[name] = args.get(name, {}) | settings
    with new_home() as home, tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        yaml.safe_dump(document, config)
        config.flush()
        with serving(home, "--config", config.name) as server:
            yield Soaked(server, home)


async def soak(service: Soaked, raw: Path, arguments: argparse.Namespace) -> Ending:
    load: Load
    url = service.server.target.url.removesuffix("/v1/completions")
    async with running_load(
        url,
        service.server.target.key,
        await _printed(service),
        num_clients=arguments.clients,
        pause_s=arguments.pause,
        train_every_s=arguments.train_every,
        seed=arguments.seed,
    ) as load:
        while not load.trainer.has_all:  # what every adapter takes once is taken before the time runs
            service.server.program.check()
            await asyncio.sleep(1)
        _tell(f"{load.findings.answers.total()} requests until {len(load.trainer.models)} models were trained")
        async for at_s in _ticks(arguments.minutes * 60, arguments.every):
            service.server.program.check()
            moment = await asyncio.to_thread(service.moment, at_s, load.findings)
            append(raw, moment)
            _tell(_summary(moment))
    books = await _settled(service)
    findings = load.findings
    lines = read_lines(service.database)
    for exchange in findings.exchanges:
        if fault := fault_of(exchange, lines.get(exchange.id, ())):
            findings.problem(fault)
    return Ending(
        books=books,
        answers={f"{kind} {status}": count for (kind, status), count in sorted(findings.answers.items())},
        ends=dict(Counter(exchange.end.name.lower() for exchange in findings.exchanges)),
        problems=findings.problems,
        num_repeated=findings.num_repeated,
        num_different_requests=len(findings.texts),
        models_trained=load.trainer.num_succeeded,
        jobs_cancelled=load.trainer.num_cancelled,
        webhooks_received=load.trainer.receiver.num_received,
        errors=list(service.errors()),
    )


async def _ticks(seconds: float, every_s: float) -> AsyncIterator[float]:
    """The time since the beginning, every so many seconds, until so many have passed."""
    began = time.monotonic()
    for number in range(1, round(seconds / every_s) + 1):
        await asyncio.sleep(max(0.0, began + number * every_s - time.monotonic()))
        yield time.monotonic() - began


async def _printed(service: Soaked) -> str:
    """The address of the measurements, which the service tells a moment after its first answer."""
    for _ in range(_SETTLE_S):
        try:
            return service.measurements()
        except LookupError:
            await asyncio.sleep(1)
    return service.measurements()


async def _settled(service: Soaked) -> Books:
    """What the books say once nothing is open, or half a minute later."""
    for _ in range(_QUIET_S):
        books = read_books(service.database)
        if not (books.open_reservations or books.running_idempotent or books.pending_webhooks or books.open_jobs):
            return books
        await asyncio.sleep(1)
    return read_books(service.database)


def _summary(moment: Moment) -> str:
    total = sum(held.pss for held in moment.processes) >> 20
    fds = sum(held.fds for held in moment.processes)
    return (
        f"{moment.at_s / 60:.1f} min: {moment.requests} requests, {moment.faults} with 5xx, "
        f"{moment.problems} problems; {len(moment.processes)} processes, {total} MiB, {fds} descriptors; "
        f"{moment.books.open_reservations} open, first token {moment.first_token_ms} ms"
    )


def _tell(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of raw records, page and plots; replaced")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds from one look to the next")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that a client waits between its requests")
    parser.add_argument("--train-every", type=float, default=120, help="seconds from the end of a job to the next")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    raw = arguments.out / RAW_NAME
    raw.unlink(missing_ok=True)
    command = shlex.join(["python", "-m", "load_tests.service_soak", *sys.argv[1:]])
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    append(raw, Run(command, started_at, describe_machine(), arguments.clients))
    with soaked() as service:
        append(raw, asyncio.run(soak(service, raw, arguments)))
    found = write_report(arguments.out)
    sys.stdout.write("\n".join([*found[:50], "sound" if not found else "NOT SOUND"]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
