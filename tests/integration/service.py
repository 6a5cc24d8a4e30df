"""A service started the way a user starts it, and what tests do to it from outside."""

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from serve_app.launcher.local_state import make_runtime_dir
from serve_app.launcher.profile import MARKER

T = TypeVar("T")

MODEL = "SmolLM2-135M-Instruct"
GENERATOR = f"Generator-{MODEL}"
LOCAL_CONFIG = Path(__file__).parents[2] / "infra/serve/local.yaml"

_COMMAND = "from serve_app.cli import main; main()"
_ASK_ENGINE = f"""
import asyncio, dataclasses
async def ask():
    handle = serve.get_deployment_handle({GENERATOR!r}, "tritext").options(method_name="stats", stream=True)
    return [dataclasses.asdict(stats) async for stats in handle.remote()]
[answer] = asyncio.run(ask())
"""
_IN_CLUSTER = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
from ray import serve
{0}
print(json.dumps(answer))
"""


def free_port() -> int:
    """Below the ports that the system gives to anybody, Ray's processes among them, and beside those that other servers
    choose: it is bound only a while later."""
    choice = random.SystemRandom()
    while True:
        port = choice.randrange(10_000, 12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> float:
    """Returns how long it took, in seconds."""
    started_at = time.monotonic()
    while not condition():
        if time.monotonic() - started_at > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - started_at


@dataclass
class Service:
    """A launcher in a process of its own, with its own home; `output` is what it has printed so far.

    variables: of its environment, beside those of this process.
    """

    home: Path
    profile: str
    config: Path = LOCAL_CONFIG
    port: int = field(default_factory=free_port)
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = self.home / "launcher-output"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-c", _COMMAND, "serve",
                    "--port", str(self.port), "--profile", self.profile, "--config", str(self.config),
                ],
                env={**os.environ, **self.variables, "TRITEXT_HOME": str(self.home)},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "first_key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def commands(self) -> list[str]:
        """The curl lines, as printed."""
        return [line for line in self.output.splitlines() if line.startswith("curl ")]

    def wait_ready(self, timeout_s: float = 240) -> None:
        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the launcher ended:\n{self.output}")
            return "Ctrl-C stops the service." in self.output

        wait_until(is_ready, timeout_s=timeout_s, what=f"ready; it printed:\n{self.output}")

    def complete(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 2} | fields
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=self.headers, timeout=120)

    def status(self) -> dict[str, Any]:
        """What the printed command `serve status` says of the application."""
        found = self._serve("status")
        return yaml.safe_load(found.stdout)["applications"]["tritext"] if found.returncode == 0 else {}

    def deploy(self, config: Path) -> None:
        """Rolls out another configuration, as an operator does: by `serve deploy`."""
        done = self._serve("deploy", str(config))
        assert done.returncode == 0, done.stdout + done.stderr

    def _serve(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Ray Serve's command line, called as the start prints it."""
        [printed] = re.findall(r"^Deployments: (.*)$", self.output, re.MULTILINE)
        words = shlex.split(printed)
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        program, _, *options = words[len(variables) :]
        return subprocess.run(
            [program, command, *options, *arguments], env=os.environ | variables, capture_output=True, text=True
        )

    def healthy_deployments(self) -> set[str]:
        deployments = self.status().get("deployments", {})
        return {name for name, deployment in deployments.items() if deployment["status"] == "HEALTHY"}

    def processes(self) -> list[psutil.Process]:
        """Every process of the service but the launcher itself."""
        home, runtime_dir = str(self.home), make_runtime_dir(self.home)
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.process.pid
            and (_environment(process).get("TRITEXT_HOME") == home or _has_open_file(process, runtime_dir))
        ]

    def names(self) -> set[str]:
        """Of the processes."""
        return set(self.ask_processes(lambda process: process.name()))

    def ask_processes(self, ask: Callable[[psutil.Process], T]) -> list[T]:
        """What every process of the service says of itself, but for those that end meanwhile."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(ask(process))
        return found

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Those that run at this moment."""
        return self.processes_called(f"ServeReplica:tritext:{deployment}")

    def replica(self, deployment: str) -> psutil.Process:
        [process] = self.replicas(deployment)
        return process

    def processes_called(self, title: str) -> list[psutil.Process]:
        """The processes of the service with this in their command line, without what they are just forking."""
        found: dict[int, psutil.Process] = {}
        parents: dict[int, int] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if title in " ".join(process.cmdline()):
                    parents[process.pid] = process.ppid()
                    found[process.pid] = process
        return [process for pid, process in found.items() if parents[pid] not in found]

    def engine_stats(self) -> dict[str, Any]:
        """The statistics of the generator's engine, asked over a handle."""
        return dict(self._ask(_ASK_ENGINE))

    def free_cpus(self) -> float:
        """What of the cluster's CPUs no replica has reserved."""
        return float(self._ask('answer = ray.available_resources().get("CPU", 0)'))

    def _ask(self, script: str) -> Any:
        """What a script that runs in the cluster leaves in `answer`."""
        [raylet] = self.processes_called("/raylet/raylet ")
        variables = _environment(raylet)
        del variables[MARKER]
        [variables["RAY_ADDRESS"]] = (
            word.removeprefix("--gcs-address=") for word in raylet.cmdline() if word.startswith("--gcs-address=")
        )
        script = _IN_CLUSTER.format(script)
        found = subprocess.run(
            [sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True
        )
        return json.loads(found.stdout.splitlines()[-1])

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def discard(self) -> None:
        """Stops the service if it runs, and removes what it keeps outside its home."""
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(make_runtime_dir(self.home))


@contextmanager
def running(home: Path, profile: str, **options: Any) -> Iterator[Service]:
    """A service that answers; stopped at the end, whatever happens."""
    service = Service(home, profile, **options)
    try:
        service.wait_ready()
        yield service
    finally:
        service.discard()


def _environment(process: psutil.Process) -> dict[str, str]:
    """What the process was started with. psutil stops at the empty entries that a changed title leaves."""
    try:
        block = Path(f"/proc/{process.pid}/environ").read_bytes() if sys.platform == "linux" else None
        if block is None:
            return dict(process.environ())
    except (psutil.Error, OSError):
        return {}
    return dict(entry.split("=", 1) for entry in block.decode(errors="replace").split("\0") if "=" in entry)


def _has_open_file(process: psutil.Process, directory: Path) -> bool:
    try:
        return any(Path(file.path).is_relative_to(directory) for file in process.open_files())
    except (psutil.Error, OSError):
        return False
