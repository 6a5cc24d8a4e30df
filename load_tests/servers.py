"""Starts the servers that are measured, each as its users start it, and stops them again."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployments.model_source import default_home
from load_tests.traffic import Target

_START_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers, and how long its start took."""

    name: str
    target: Target
    start_s: float


@contextmanager
def tritext() -> Iterator[Server]:
    """The service with the default model, from `tritext serve`, in a home of its own that shares prepared models."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name in ("models", "kernels"):
            (default_home() / name).mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(default_home() / name)
        command = [sys.executable, "-c", "from serve_app.cli import main; main()", "serve", "--port", str(port)]
        with _running(command, f"http://127.0.0.1:{port}/ready", TRITEXT_HOME=str(home)) as start_s:
            key = (home / "first_key").read_text().strip()
            target = Target(f"http://127.0.0.1:{port}/v1/completions", "standard", key)
            yield Server("tritext", target, start_s)


@contextmanager
def llamacpp() -> Iterator[Server]:
    """llama.cpp's server. LLAMA_SERVER names its program, LLAMA_GGUF the model, LLAMA_SLOTS for how many clients."""
    slots, port = int(os.environ.get("LLAMA_SLOTS", "32")), _free_port()
    gguf = Path(os.environ["LLAMA_GGUF"])
    command = [
        os.environ["LLAMA_SERVER"], "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port),
        "-t", "2", "-tb", "2", "--parallel", str(slots), "-c", str(slots * 512),
        "--cont-batching", "--no-cache-prompt", "--cache-ram", "0",
    ]  # fmt: skip
    with _running(command, f"http://127.0.0.1:{port}/health") as start_s:
        yield Server(
            f"llama.cpp {gguf.stem}, {slots} slots", Target(f"http://127.0.0.1:{port}/v1/completions", "m"), start_s
        )


SERVERS = {"tritext": tritext, "llamacpp": llamacpp}


@contextmanager
def _running(command: list[str], ready_url: str, **variables: str) -> Iterator[float]:
    """The program, from when `ready_url` answers until the block ends; yields the seconds that this took."""
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(  # noqa: S603
            command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            while not _answers(ready_url):
                if process.poll() is not None or time.perf_counter() - started > _START_TIMEOUT_S:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.05)
            yield time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGINT)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
