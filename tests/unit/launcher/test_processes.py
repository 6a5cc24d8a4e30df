import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.launcher import processes
from serve_app.launcher.profile import MARKER

IGNORES_TERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
SLEEPS = "import time; print(flush=True); time.sleep(60)"


@pytest.fixture
def start() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Starts a Python script marked as belonging to a directory; returns when it runs."""
    started: list[subprocess.Popen[str]] = []

    def run(marker: Path, script: str) -> subprocess.Popen[str]:
        environment = os.environ | {MARKER: str(marker)}
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_only_processes_with_the_marker_are_ended(
    tmp_path: Path, start: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    mine, other = start(tmp_path / "mine", SLEEPS), start(tmp_path / "other", SLEEPS)
    assert [process.pid for process in processes.find(tmp_path / "mine")] == [mine.pid]
    assert processes.end_all(tmp_path / "mine") == []
    assert mine.wait(30) is not None
    assert other.poll() is None


def test_a_process_that_ignores_the_request_is_forced(
    tmp_path: Path, start: Callable[[Path, str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_TERM_WAIT_S", 0.1)
    stubborn = start(tmp_path, IGNORES_TERM)
    assert processes.end_all(tmp_path) == []
    assert stubborn.wait(30) is not None


def test_a_process_that_has_changed_its_title_is_found(
    tmp_path: Path, start: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    changes_title = "import ray, time; ray._raylet.setproctitle('x' * 200); print(flush=True); time.sleep(60)"
    renamed = start(tmp_path, changes_title)
    assert processes.end_all(tmp_path) == []
    assert renamed.wait(30) is not None


def test_a_process_whose_environment_is_overwritten_is_known_by_its_open_files(
    tmp_path: Path, start: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    log = f"file = open({str(tmp_path / 'log')!r}, 'w')"
    title = "import ray, time; ray._raylet.setproctitle('x' * 100_000)"
    renamed = start(tmp_path, f"{log}; {title}; print(flush=True); time.sleep(60)")
    assert processes.end_all(tmp_path) == []
    assert renamed.wait(30) is not None


def test_a_known_process_is_ended_without_its_marker(
    tmp_path: Path, start: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    unmarked = start(tmp_path / "other", SLEEPS)
    known = [process for process in processes.descendants() if process.pid == unmarked.pid]
    assert processes.end_all(tmp_path, known) == []
    assert unmarked.wait(30) is not None
