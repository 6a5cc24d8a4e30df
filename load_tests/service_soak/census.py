"""What the processes of a running service hold: memory, file descriptors, threads."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds. Sizes in bytes; `pss` counts pages that processes share in parts."""

    pid: int
    role: str
    rss: int
    pss: int
    fds: int
    threads: int


def census(launcher: psutil.Process) -> list[Held]:
    """Of the launcher and everything that it has started, whether directly or not."""
    return list(_held(launcher, "launcher")) + [
        held for child in launcher.children(recursive=True) for held in _held(child, "")
    ]


def role_of(command: list[str], name: str) -> str:
    """What a process is to the service, from its command line and its name.

    Workers of Ray title themselves `ray::` and what they do; replicas `ray::ServeReplica:application:deployment`. Other
    programs in Python are known by their script or module.
    """
    title = command[0] if command else ""
    if title.startswith("ray::ServeReplica:"):
        return title.split(":")[-1].split("#")[0].split(".")[0].strip()
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split(":")[0].strip()
    if name.startswith("python"):
        scripts = [Path(word).stem for word in command if word.endswith(".py")]
        modules = [later for word, later in pairwise(command) if word == "-m"]
        return next(iter((*scripts, *modules)), name)
    return name


def directory_bytes(directory: Path) -> int:
    """What the files under a directory take on disk, those that links lead to left out."""
    total = 0
    for path in directory.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # it has just gone
        total += status.st_blocks * 512
    return total


def _held(process: psutil.Process, role: str) -> Iterator[Held]:
    try:
        with process.oneshot():
            role = role or role_of(process.cmdline(), process.name())
            yield Held(
                process.pid,
                role,
                process.memory_info().rss,
                _pss(process.pid),
                process.num_fds(),
                process.num_threads(),
            )
    except (psutil.Error, OSError):
        return  # it has just ended


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
