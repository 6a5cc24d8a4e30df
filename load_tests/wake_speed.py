"""Prints how soon a model that sleeps answers: from the request to its first token, with no replica, split in parts.

Starts the service with the default model on this machine, lets the model go to sleep, and asks for text.
"""

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil
import yaml

from load_tests.http_server import HttpServer
from load_tests.own import new_home, serving
from load_tests.tables import table
from load_tests.traffic import send_all
from serve_app.launcher.local_state import make_runtime_dir

_CONFIG = Path(__file__).parents[1] / "infra/serve/local.yaml"
_SLEEPY = {
    "min_replicas": 0,
    "max_replicas": 1,
    "target_ongoing_requests": 32,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 1,
}
_ASLEEP_TIMEOUT_S = 60

_LOG_LINE = re.compile(r"^[A-Z]+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*? -- (.*)$")
_PHASE = re.compile(r"([a-z]+) (\d+\.\d+) s")


def write_config(directory: Path) -> Path:
    """The configuration of one machine, with a generator that sleeps."""
    document = yaml.safe_load(_CONFIG.read_text("utf-8"))
    [application] = document["applications"]
    for deployment in application["deployments"]:
        if deployment["name"].startswith("Generator-"):
            deployment["autoscaling_config"] = _SLEEPY
    path = directory / "asleep.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


def wait_until_asleep(server: HttpServer) -> None:
    """Raises TimeoutError."""
    ends_at = time.monotonic() + _ASLEEP_TIMEOUT_S
    while _is_awake(server):
        if time.monotonic() > ends_at:
            raise TimeoutError("the model does not go to sleep")
        time.sleep(0.2)
    time.sleep(3)  # what its end leaves to be done


def _is_awake(server: HttpServer) -> bool:
    names = []
    for process in psutil.Process(server.program.process.pid).children(recursive=True):
        try:
            names.append(" ".join(process.cmdline()))
        except psutil.Error:  # it has just ended
            continue
    return any("Generator-" in name for name in names)


def wake(server: HttpServer, logs: Path) -> Mapping[str, float]:
    """The parts of the time that one request to a model that sleeps takes."""
    began_at = time.time()
    _, [sample] = asyncio.run(send_all(server.target, ["The lighthouse"], concurrency=1, max_tokens=4))
    [controller] = logs.glob("controller_[0-9]*.log")
    [replica] = [path for path in logs.glob("replica_*_Generator-*.log") if path.stat().st_ctime > began_at]
    return parts(controller.read_text("utf-8"), replica.read_text("utf-8"), began_at, began_at + sample.first_s)


def parts(controller: str, replica: str, began_at: float, first_token_at: float) -> Mapping[str, float]:
    """Seconds by part, in their order; they sum up to the whole. controller, replica: the logs, in which what was
    written before `began_at` does not count. Raises LookupError where one of them lacks something."""
    decided_at = _time_of("Upscaling Deployment(name='Generator-", controller, began_at)
    asked_at = _time_of("Starting Replica(", controller, began_at)
    initialized_at = _time_of("Started initializing replica", replica, began_at)
    loaded_at = _time_of("Finished initializing replica", replica, began_at)
    noticed_at = _time_of("started successfully", controller, began_at)
    loaded = re.search(r"is loaded: (.*)", replica)
    phases = {name: float(seconds) for name, seconds in _PHASE.findall(loaded[1])} if loaded else {}
    return {
        "until Serve decides to start a replica": decided_at - began_at,
        "until it does": asked_at - decided_at,
        "process, imports of Ray and Serve": initialized_at - asked_at,
        **{f"model: {name}": seconds for name, seconds in phases.items()},
        "model: the rest": loaded_at - initialized_at - sum(phases.values()),
        "until Serve takes it for ready": noticed_at - loaded_at,
        "first token": first_token_at - noticed_at,
    }


def _time_of(text: str, log: str, after: float) -> float:
    """When the first line with this text was written since then. Raises LookupError."""
    for line in log.splitlines():
        found = _LOG_LINE.match(line)
        if found and text in found[2]:
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()  # of this machine's time zone
            if at > after:
                return at
    raise LookupError(f"no log tells of {text!r}")


def print_table(rounds: list[Mapping[str, float]]) -> None:
    totals = [sum(parts.values()) for parts in rounds]
    heading = ("seconds", "median", *(f"round {number}" for number in range(1, len(rounds) + 1)))
    rows = [
        (name, *(f"{value:.2f}" for value in (statistics.median(values), *values)))
        for name, values in {
            **{name: [parts.get(name, 0.0) for parts in rounds] for name in rounds[0]},
            "**from the request to the first token**": totals,
        }.items()
    ]
    sys.stdout.write(table(heading, rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rounds = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        new_home() as home,
        serving(home, "--config", str(write_config(Path(scratch)))) as server,
    ):
        logs = make_runtime_dir(home) / "ray/session_latest/logs/serve"
        for _ in range(arguments.rounds):
            wait_until_asleep(server)
            rounds.append(wake(server, logs))
    print_table(rounds)


if __name__ == "__main__":
    main()
