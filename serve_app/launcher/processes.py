"""Finds and ends the processes of one running service; never another's."""

import os
from pathlib import Path

import psutil

from serve_app.launcher.profile import MARKER

_TERM_WAIT_S = 3.0
_KILL_WAIT_S = 5.0


def find(runtime_dir: Path) -> list[psutil.Process]:
    """The processes that were started with this directory as their marker, whoever is their parent by now."""
    return [process for process in psutil.process_iter() if _belongs(process, str(runtime_dir))]


def end_all(runtime_dir: Path) -> list[psutil.Process]:
    """Asks all processes of the service to end, then forces them; returns those that are left, normally none."""
    for wait_s, is_forced in ((_TERM_WAIT_S, False), (_KILL_WAIT_S, True), (_KILL_WAIT_S, True)):
        processes = find(runtime_dir)
        for process in processes:
            try:
                process.kill() if is_forced else process.terminate()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=wait_s)
    return find(runtime_dir)


def _belongs(process: psutil.Process, marker: str) -> bool:
    try:
        return (
            process.pid != os.getpid()
            and process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get(MARKER) == marker
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
