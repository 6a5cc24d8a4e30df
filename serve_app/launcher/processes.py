"""Finds and ends the processes of one running service; never another's."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from serve_app.launcher.profile import MARKER

_TERM_WAIT_S = 3.0
_KILL_WAIT_S = 5.0


def descendants() -> list[psutil.Process]:
    """What this process has started, directly or not, as far as the chain of parents is whole."""
    return psutil.Process().children(recursive=True)


def find(runtime_dir: Path) -> list[psutil.Process]:
    """The processes that were started with this directory as their marker, or write in it, whatever their parent."""
    return [process for process in psutil.process_iter() if _belongs(process, runtime_dir)]


def end_all(runtime_dir: Path, known: Iterable[psutil.Process] = ()) -> list[psutil.Process]:
    """Asks all processes of the service to end, then forces them; returns those that are left, normally none.

    `known` are processes of the service that may have lost their marker.
    """
    known = set(known)
    for wait_s, is_forced in ((_TERM_WAIT_S, False), (_KILL_WAIT_S, True), (_KILL_WAIT_S, True)):
        processes = _left(runtime_dir, known)
        for process in processes:
            try:
                process.kill() if is_forced else process.terminate()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=wait_s)
    return _left(runtime_dir, known)


def _left(runtime_dir: Path, known: set[psutil.Process]) -> list[psutil.Process]:
    return list({process for process in known if _is_alive(process)} | set(find(runtime_dir)))


def _belongs(process: psutil.Process, runtime_dir: Path) -> bool:
    try:
        if process.pid == os.getpid() or process.uids().real != os.getuid() or not _is_alive(process):
            return False
        # Ray's processes change their titles, which overwrites the environment or a part of it; but all write logs.
        return f"{MARKER}={runtime_dir}" in _environment(process) or any(
            Path(file.path).is_relative_to(runtime_dir) for file in process.open_files()
        )
    except (psutil.Error, OSError):
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(process: psutil.Process) -> set[str]:
    if psutil.LINUX:
        # psutil stops at the first empty entry, and a process that has changed its title has some.
        block = Path(f"/proc/{process.pid}/environ").read_bytes()
        return set(block.decode(errors="replace").split("\0"))
    return {f"{name}={value}" for name, value in process.environ().items()}
