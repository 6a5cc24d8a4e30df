"""`transformers serve` with continuous batching, in float32."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load_tests.contender import Contender, install_hint
from load_tests.http_server import HttpServer, http_server
from load_tests.peers.environment import Environment
from load_tests.peers.model import float_model
from load_tests.processes import free_port
from load_tests.traffic import Target

ENVIRONMENT = Environment("transformers-serve", packages=("transformers[serving]==5.23.0", "torch"))

_GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
"""Without an end token, so that every answer has its full length; the server knows no ignore_eos."""


def prepare() -> None:
    """Nothing: the server reads the model as it lies."""


@contextmanager
def start(num_clients: int) -> Iterator[HttpServer]:  # noqa: ARG001
    port, model = free_port(), str(float_model())
    command: list[str | Path] = [
        ENVIRONMENT.program("transformers"), "serve", model, "--host", "127.0.0.1", "--port", str(port),
        "--device", "cpu", "--dtype", "float32", "--continuous-batching",
    ]  # fmt: skip
    changes = {"ignore_eos": None, "generation_config": json.dumps(_GENERATION)}
    target = Target(f"http://127.0.0.1:{port}/v1/completions", model, changes=changes)
    with http_server(command, port, lambda: target, env={"HF_HUB_OFFLINE": "1"}) as server:
        yield server


def _missing() -> str:
    return "" if ENVIRONMENT.program("transformers").is_file() else install_hint("transformers-serve")


TRANSFORMERS_SERVE = Contender("transformers serve float32", start, _missing, ENVIRONMENT.versions, slow=True)
