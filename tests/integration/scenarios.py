"""Runs modules whose scenarios need a Ray of their own, each in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import psutil


def outcomes(module: str, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What each scenario of `tests.integration.<module>` came to: the last line of JSON that it prints.

    settings: of its environment.
    """
    # Not pytest's directory: the names of Ray's sockets would be longer than the 107 bytes that sockets may have.
    with tempfile.TemporaryDirectory(prefix="runs-") as temporary:
        os.chmod(temporary, 0o711)  # noqa: S103  # for servers that run as another user
        home = os.path.join(temporary, "home")
        os.mkdir(home, mode=0o700)
        environment = {
            **os.environ,
            "TRITEXT_HOME": home,
            "TMPDIR": temporary,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            **(settings or {}),
        }
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", f"tests.integration.{module}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and found, done.stdout[-4000:] + done.stderr[-8000:]
    return dict(json.loads(found[-1]))


def only_replica(application: str, deployment: str) -> psutil.Process:
    """Of the Ray that this process has started; without what the replica is just forking."""
    title = f"ServeReplica:{application}:{deployment}"
    found: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if title in " ".join(process.cmdline()):
                parents[process.pid] = process.ppid()
                found[process.pid] = process
    [replica] = [process for pid, process in found.items() if parents[pid] not in found]
    return replica
