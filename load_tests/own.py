"""What of this project is measured: the whole service over HTTP, and its engine alone in a process."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from deployments.model_source import default_home
from load_tests.contender import IN_PROCESS, Contender
from load_tests.http_server import HttpServer, http_server
from load_tests.processes import free_port
from load_tests.traffic import Target
from load_tests.worker import Worker, worker
from serve_app.launcher.local_state import make_runtime_dir


@contextmanager
def new_home() -> Iterator[Path]:
    """A data directory that shares the prepared models; gone afterwards, with its service's sockets and logs.

    Where the block fails the logs stay, for whoever looks for the reason.
    """
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name in ("models", "kernels"):
            (default_home() / name).mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(default_home() / name)
        yield home
        shutil.rmtree(make_runtime_dir(home))


@contextmanager
def serving(home: Path, *options: str) -> Iterator[HttpServer]:
    """`tritext serve` with these options, as `make serve` runs it, over a data directory of this kind."""
    port = free_port()

    def target() -> Target:
        key = (home / "first_key").read_text(encoding="utf-8").strip()
        return Target(f"http://127.0.0.1:{port}/v1/completions", "standard", key)

    command = [sys.executable, "-c", "from serve_app.cli import main; main()", "serve", "--port", str(port), *options]
    with http_server(command, port, target, env={"TRITEXT_HOME": str(home)}) as server:
        yield server


@contextmanager
def start_service(num_clients: int) -> Iterator[HttpServer]:  # noqa: ARG001
    with new_home() as home, serving(home) as server:
        yield server


@contextmanager
def start_engine(num_clients: int) -> Iterator[Worker]:  # noqa: ARG001
    with worker([sys.executable, "-m", "load_tests.engine_worker"]) as started:
        yield started


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ray", "torch", "transformers")}


SERVICE = Contender("tritext int8", start_service, str, _versions, reuses_prompts=True)
ENGINE = Contender(SERVICE.title + IN_PROCESS, start_engine, str, _versions, reuses_prompts=True)
