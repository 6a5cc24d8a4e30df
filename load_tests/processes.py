"""A measured program: starting and stopping it, and the memory and processor time of all its processes."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

_STOP_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Memory:
    """See MemoryRecord."""

    pss_mib: int
    largest_peak_mib: int
    largest_process: str


@dataclass(frozen=True, slots=True)
class Program:
    """A running program and the file that takes what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def input(self) -> IO[bytes]:
        return _pipe(self.process.stdin)

    @property
    def output(self) -> IO[bytes]:
        return _pipe(self.process.stdout)

    def check(self) -> None:
        """Raises RuntimeError, with the last that it printed, if the program has ended."""
        if self.process.poll() is not None:
            printed = self.log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise RuntimeError(f"the program ended by itself with {self.process.returncode}:\n{printed}")

    def cpu_s(self) -> float:
        """Processor seconds of the program and all that it started, less what has ended."""
        times = [one.cpu_times() for one in self._tree()]
        return sum(one.user + one.system for one in times)

    def memory(self) -> Memory:
        pss, largest, name = 0, 0, ""
        for one in self._tree():
            try:
                pss += one.memory_full_info().pss
                peak = _peak_kib(one.pid)
                if peak > largest:
                    largest, name = peak, _name(one)
            except (psutil.Error, OSError):
                continue  # it has just ended
        return Memory(pss >> 20, largest >> 10, name)

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def running(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, pipes: bool = False
) -> Iterator[Program]:
    """The program in a process group of its own, until the block ends: then told to end, and killed if it stays.

    With `pipes` its standard input and output are to be read and written by the caller.
    """
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(  # noqa: S603
                [str(word) for word in command],
                env=os.environ | dict(env or {}),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield Program(process, log)
            finally:
                _stop(process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def machine_cpu_s() -> float:
    """Processor seconds that everything on this machine has used since its start, what its host took included."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # an interrupt may be ignored, where this one runs in the background
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    if end is None:
        raise RuntimeError("the program was started without pipes")
    return end


def _name(process: psutil.Process) -> str:
    """Its title, where it has given itself one, else its program's name."""
    command = process.cmdline()
    return Path(command[0]).name[:60] if command and command[0] else process.name()


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
