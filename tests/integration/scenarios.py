"""Runs modules whose scenarios need a Ray of their own, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any


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
