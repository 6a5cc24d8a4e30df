"""Real small programs, started, asked and stopped as the contenders are."""

import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from load_tests.bench import measure
from load_tests.contender import Contender, Started
from load_tests.http_server import http_server
from load_tests.records import CellRecord, FailureRecord, MemoryRecord, PrefillRecord, StartRecord, of_type
from load_tests.traffic import Target
from load_tests.worker import worker

_SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    num_refused = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if Handler.num_refused < 2:  # a server whose model is not ready
            Handler.num_refused += 1
            self.send_error(503)
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\\n\\n')
        usage = json.dumps({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.wfile.write(f"data: {usage}\\n\\ndata: [DONE]\\n\\n".encode())

    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

_WORKER = """
from load_tests.worker_loop import serve

class Loop:
    left = {}

    def encode(self, text):
        return [1]

    def add(self, key, token_ids, max_tokens):
        self.left[key] = max_tokens

    def step(self):
        print("what libraries print is no answer")
        arrived = {key: (left, True) for key, left in self.left.items()}
        self.left.clear()
        return arrived

serve(Loop())
"""


@contextmanager
def _held_port() -> Iterator[int]:
    """A port that is given to nobody else before the server listens there, which reuses addresses."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def _start_server(num_clients: int) -> Iterator[Started]:  # noqa: ARG001
    with _held_port() as port:
        target = Target(f"http://127.0.0.1:{port}/v1/completions", "m")
        with http_server([sys.executable, "-c", _SERVER, str(port)], port, lambda: target) as server:
            yield server


def _start_worker(num_clients: int) -> AbstractContextManager[Started]:  # noqa: ARG001
    return worker([sys.executable, "-c", _WORKER], env={"PYTHONPATH": str(Path(__file__).parents[3])})


@contextmanager
def _start_broken(num_clients: int) -> Iterator[Started]:  # noqa: ARG001
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with _held_port() as port, http_server(command, port, lambda: Target("", "")) as server:
        yield server


def _contender(start: object) -> Contender:
    return Contender("it", start, str, dict)  # type: ignore[arg-type]


def test_a_server_is_measured_from_its_first_token_on() -> None:
    records = list(measure(_contender(_start_server), 0, {1: 2, 8: 9}))
    assert [type(record) for record in records] == [StartRecord, CellRecord, MemoryRecord, CellRecord, MemoryRecord]
    cells = of_type(records, CellRecord)
    assert [len(cell.samples) for cell in cells] == [2, 9]
    assert {sample.num_tokens for cell in cells for sample in cell.samples} == {128}
    assert all(
        0 <= one.sent_s <= one.first_s <= one.last_s <= cell.wall_s + 0.01 for cell in cells for one in cell.samples
    )
    assert all(memory.largest_peak_mib > 0 for memory in of_type(records, MemoryRecord))


def test_a_worker_is_measured_through_its_pipes_and_has_prefill() -> None:
    records = list(measure(_contender(_start_worker), 2, {8: 9}))
    assert len(of_type(records, CellRecord)[0].samples) == 9
    assert [record.num_prompt_tokens for record in of_type(records, PrefillRecord)] == [64, 256, 512]
    assert {record.round for record in of_type(records, StartRecord)} == {2}


@pytest.mark.parametrize("restarts", [False, True])
def test_it_is_started_for_every_number_of_clients_where_that_matters(restarts: bool) -> None:
    asked: list[int] = []

    def start(num_clients: int) -> AbstractContextManager[Started]:
        asked.append(num_clients)
        return _start_worker(num_clients)

    list(measure(Contender("it", start, str, dict, restarts=restarts), 0, {1: 1, 8: 8}))
    assert asked == ([1, 8] if restarts else [8])


def test_a_program_that_ends_by_itself_fails_with_what_it_said() -> None:
    (record,) = measure(_contender(_start_broken), 0, {1: 1})
    assert isinstance(record, FailureRecord)
    assert "no such model" in record.reason


def test_nothing_runs_on_after_a_turn() -> None:
    with _start_server(1) as started:
        pid = started.program.process.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
