"""OpenVINO GenAI with int8 weights, in process: its continuous batching pipeline, without HTTP."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load_tests.contender import Contender, install_hint
from load_tests.peers.environment import Environment, bench_home
from load_tests.peers.model import float_model
from load_tests.worker import Worker, worker

ENVIRONMENT = Environment(
    "openvino",
    packages=("openvino-genai==2026.4.1.0", "nncf==3.4.0", "torch"),
    trimmed=("optimum-intel==2.2.0",),
    left_out=frozenset({"torchvision"}),
)

_SOURCE_ROOT = Path(__file__).parents[2]


def prepare() -> None:
    """Converts the model."""
    command: list[str | Path] = [
        ENVIRONMENT.program("optimum-cli"), "export", "openvino", "-m", float_model(),
        "--task", "text-generation-with-past", "--weight-format", "int8", _model(),
    ]  # fmt: skip
    subprocess.run(command, check=True)  # noqa: S603


@contextmanager
def start(num_clients: int) -> Iterator[Worker]:
    command: list[str | Path] = [
        ENVIRONMENT.program("python"), "-m", "load_tests.peers.openvino_worker", _model(), str(max(32, num_clients))
    ]  # fmt: skip
    with worker(command, env={"PYTHONPATH": str(_SOURCE_ROOT)}) as started:
        yield started


def _missing() -> str:
    return "" if (_model() / "openvino_model.xml").is_file() else install_hint("openvino")


def _model() -> Path:
    return bench_home() / "models" / "SmolLM2-135M-Instruct-openvino-int8"


OPENVINO = Contender("OpenVINO int8, in process", start, _missing, ENVIRONMENT.versions)
