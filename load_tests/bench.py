"""Measures the service, its engine and its peers in turns: `python -m load_tests.bench tritext llamacpp --out DIR`.

They take turns, `--rounds` times, so that whatever else the machine does meets all of them alike; those whose start and
cells take minutes are measured in the first round only. The raw records, tables and plots are written to the directory.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from load_tests.contender import Contender, Started
from load_tests.figures import tokens_per_s
from load_tests.machine import describe_machine
from load_tests.own import ENGINE, SERVICE
from load_tests.peers.llamacpp import LLAMACPP
from load_tests.peers.openvino import OPENVINO
from load_tests.peers.transformers_serve import TRANSFORMERS_SERVE
from load_tests.peers.vllm import VLLM
from load_tests.plan import (
    ADDED_CHARACTERS,
    MAX_TOKENS,
    NUM_REQUESTS,
    PREFILL_LENGTHS,
    PREFILL_REPEATS,
    REPEATED_CHARACTERS,
    REPEATS,
    WARM_UP_TOKENS,
)
from load_tests.processes import machine_cpu_s
from load_tests.prompts import long_prompt, numbered_prompts
from load_tests.records import (
    CellRecord,
    FailureRecord,
    MemoryRecord,
    PrefillRecord,
    Record,
    RepeatRecord,
    RunRecord,
    StartRecord,
    append,
)
from load_tests.report import RAW_NAME, write_report

CONTENDERS = {
    "tritext": SERVICE,
    "engine": ENGINE,
    "llamacpp": LLAMACPP,
    "openvino": OPENVINO,
    "vllm": VLLM,
    "transformers-serve": TRANSFORMERS_SERVE,
}


def measure(contender: Contender, round_number: int, num_requests: dict[int, int]) -> Iterator[Record]:
    """The records of one contender's turn; `num_requests` is by number of clients. A failure ends it, as a record."""
    groups = [[concurrency] for concurrency in num_requests] if contender.restarts else [list(num_requests)]
    try:
        for group in groups:
            with contender.start(max(group)) as started:
                yield StartRecord(contender.title, round_number, round(started.first_token_s, 3))
                for concurrency in group:
                    yield _cell(contender, started, round_number, concurrency, num_requests[concurrency])
                    memory = started.program.memory()
                    yield MemoryRecord(contender.title, round_number, concurrency, **asdict(memory))
                yield from _prefills(contender, started, round_number)
                if contender.reuses_prompts:
                    yield _repeats(contender, started, round_number)
    except Exception as error:  # whatever goes wrong with one contender, the others are measured
        yield FailureRecord(contender.title, round_number, f"{error!r} {getattr(error, 'exceptions', '')}".strip())


def _cell(contender: Contender, started: Started, round_number: int, concurrency: int, num_requests: int) -> CellRecord:
    """After a warm-up with as many clients, whose prompts begin otherwise."""
    warm_up = numbered_prompts(2 * concurrency, concurrency)
    started.generate(warm_up, concurrency=concurrency, max_tokens=WARM_UP_TOKENS)
    prompts = numbered_prompts(2 * concurrency + 1, num_requests)
    client, server, machine = time.process_time(), started.program.cpu_s(), machine_cpu_s()
    wall_s, samples = started.generate(prompts, concurrency=concurrency, max_tokens=MAX_TOKENS)
    client, server, machine = (
        time.process_time() - client,
        started.program.cpu_s() - server,
        machine_cpu_s() - machine,
    )
    return CellRecord(
        contender=contender.title,
        round=round_number,
        concurrency=concurrency,
        wall_s=round(wall_s, 3),
        client_cpu_s=round(client, 2),
        server_cpu_s=round(server, 2),
        other_cpu_s=round(max(0.0, machine - client - server), 2),
        samples=tuple(samples),
    )


def _prefills(contender: Contender, started: Started, round_number: int) -> Iterator[PrefillRecord]:
    for length in PREFILL_LENGTHS:
        seconds = started.prefill(length, PREFILL_REPEATS)
        if seconds:
            yield PrefillRecord(contender.title, round_number, length, tuple(round(one, 5) for one in seconds))


def _repeats(contender: Contender, started: Started, round_number: int) -> RepeatRecord:
    def first_token_s(text: str) -> float:
        # Several tokens: the first need not be whole characters, and would not be seen.
        _, [sample] = started.generate([text], concurrency=1, max_tokens=4)
        return round(sample.first_token_s, 5)

    seconds = [
        tuple(first_token_s(long_prompt(number, REPEATED_CHARACTERS + added)) for added in (0, ADDED_CHARACTERS))
        for number in range(REPEATS)
    ]
    first_s, again_s = zip(*seconds, strict=True)
    return RepeatRecord(contender.title, round_number, first_s, again_s)


def run(names: Sequence[str], *, rounds: int, slow_rounds: int, num_requests: dict[int, int], directory: Path) -> None:
    """Measures those that are installed, tells what it does, and writes the directory anew."""
    present: list[Contender] = []
    for name in names:
        missing = CONTENDERS[name].missing()
        if missing:
            _tell(missing)
        else:
            present.append(CONTENDERS[name])
    directory.mkdir(parents=True, exist_ok=True)
    raw = directory / RAW_NAME
    raw.unlink(missing_ok=True)
    append(
        raw,
        RunRecord(
            command=shlex.join(["python", "-m", "load_tests.bench", *sys.argv[1:]]),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=describe_machine(),
            versions={contender.title: contender.versions() for contender in present},
        ),
    )
    for round_number in range(rounds):
        for contender in present:
            if contender.slow and round_number >= slow_rounds:
                continue
            started = time.perf_counter()
            for record in measure(contender, round_number, num_requests):
                append(raw, record)
                _tell(_summary(record))
            _tell(f"{contender.title}, round {round_number + 1}: {time.perf_counter() - started:.0f} s in all")
    write_report(directory)
    _tell(f"written to {directory}")


def _summary(record: Record) -> str:
    match record:
        case StartRecord():
            return f"{record.contender}: first token after {record.first_token_s:.1f} s"
        case CellRecord():
            other = record.other_cpu_s / record.wall_s
            return (
                f"{record.contender}, {record.concurrency}: {tokens_per_s(record):.0f} tokens/s "
                f"(others took {other:.2f} cores)"
            )
        case PrefillRecord():
            return f"{record.contender}: {record.num_prompt_tokens / min(record.seconds):.0f} prompt tokens/s at most"
        case RepeatRecord():
            first_s, again_s = statistics.median(record.first_s), statistics.median(record.again_s)
            return f"{record.contender}: a long prompt after {first_s:.3f} s, repeated after {again_s:.3f} s"
        case MemoryRecord():
            return f"{record.contender}: {record.pss_mib} MiB, of it {record.largest_process} {record.largest_peak_mib}"
        case FailureRecord():
            return f"{record.contender} failed: {record.reason}"
        case _:
            return str(record)


def _tell(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="+", choices=list(CONTENDERS))
    parser.add_argument("--out", type=Path, required=True, help="directory of raw records, tables and plots; replaced")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(NUM_REQUESTS), choices=list(NUM_REQUESTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow-rounds", type=int, default=1, help="for contenders that take minutes")
    parser.add_argument(
        "--shorten", type=int, default=1, help="divides the requests of a cell, but each client sends one at least"
    )
    arguments = parser.parse_args()
    num_requests = {
        concurrency: max(concurrency, NUM_REQUESTS[concurrency] // arguments.shorten)
        for concurrency in arguments.concurrency
    }
    run(
        arguments.contenders,
        rounds=arguments.rounds,
        slow_rounds=arguments.slow_rounds,
        num_requests=num_requests,
        directory=arguments.out,
    )


if __name__ == "__main__":
    main()
