"""Whether a soak was sound. Pure: from records to findings.

Growth is judged over the last two thirds, when caches are full and every process has done all that it does: by the
median of the slopes between any two moments (Theil and Sen's), which single steps and peaks do not move.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from load_tests.service_soak.census import Held
from load_tests.service_soak.records import Ending, Moment

MIB = 2**20
MEMORY = "memory"
FDS = "file descriptors"

MAX_PROCESS_GROWTH = 16 * MIB
"""An allocator's high-water mark rises now and then by some MiB; what leaks with each of tens of thousands of requests,
even half a kilobyte, is more than this."""
MAX_TOTAL_GROWTH = 32 * MIB
MAX_FD_GROWTH = 16
"""Connections come and go by ten or so; what stays open with each hundredth of some thousand requests is more."""
KEEPS_FILES_OPEN = "log_monitor"
"""Ray's own: keeps the logs of workers that have ended open, until it has 200 of them."""
MAX_OPEN_FILES = 250
MAX_THREAD_GROWTH = 6
MAX_NEW_PROCESSES = 2
MAX_WAL_BYTES = 64 * MIB
"""It begins anew when nobody reads; where it grows on, a transaction was left open."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What of a process, or of all, grew by how much from the beginning to the end of the judged part, and by how much
    it may. `first`, `last`: medians of the first and last quarter of that part."""

    what: str
    role: str
    pid: int
    first: float
    last: float
    grown: float
    most: float

    @property
    def is_flat(self) -> bool:
        return self.grown <= self.most

    def spell(self, value: float) -> str:
        """A value of this kind with its unit."""
        return f"{value / MIB:.1f} MiB" if self.what == MEMORY else f"{value:.0f}"


def judged(moments: Sequence[Moment]) -> list[Moment]:
    """The moments of the last two thirds. Raises ValueError where these are fewer than four."""
    if not moments:
        raise ValueError("no moments")
    begin = moments[0].at_s + (moments[-1].at_s - moments[0].at_s) / 3
    found = [moment for moment in moments if moment.at_s >= begin]
    if len(found) < 4:
        raise ValueError(f"{len(found)} moments in the last two thirds are too few to judge")
    return found


def growths(moments: Sequence[Moment]) -> list[Growth]:
    """Of every process that lived all through the judged part, and of all together."""
    part = judged(moments)
    times = [moment.at_s for moment in part]
    by_pid = [{held.pid: held for held in moment.processes} for moment in part]
    lasting = [held for pid, held in by_pid[0].items() if all(pid in found for found in by_pid)]
    measured: tuple[tuple[str, Callable[[Held], int], float], ...] = (
        (MEMORY, lambda held: held.rss, MAX_PROCESS_GROWTH),
        (FDS, lambda held: held.fds, MAX_FD_GROWTH),
        ("threads", lambda held: held.threads, MAX_THREAD_GROWTH),
    )
    found = [
        _growth(what, held.role, held.pid, times, [take(by[held.pid]) for by in by_pid], most)
        for held in lasting
        for what, take, most in measured
        if (held.role, what) != (KEEPS_FILES_OPEN, FDS)
    ]
    # Not of their shares of common pages (PSS), which grow when other programs on the machine end.
    totals = [sum(by[held.pid].rss for held in lasting) for by in by_pid]
    found.append(_growth(MEMORY, "all of them", 0, times, totals, MAX_TOTAL_GROWTH))
    numbers = [len(moment.processes) for moment in part]
    return [*found, _growth("number", "processes", 0, times, numbers, MAX_NEW_PROCESSES)]


def faults(moments: Sequence[Moment], ending: Ending) -> list[str]:
    """Everything that is not as it must be, in words; empty for a sound soak."""
    told = [
        f"{one.what} of {one.role} ({one.pid}) grew by {one.spell(one.grown)}, more than {one.spell(one.most)}"
        for one in growths(moments)
        if not one.is_flat
    ]
    books = ending.books
    left = {
        "open reservations": books.open_reservations,
        "idempotent requests that run": books.running_idempotent,
        "webhooks that were not delivered": books.pending_webhooks,
        "jobs that have not ended": books.open_jobs,
    }
    told += [f"{count} {what} are left" for what, count in left.items() if count]
    wrong = {what for books in (*(moment.books for moment in moments), books) for what in books.disagreements}
    told += sorted(wrong)
    told += [
        f"{held.role} has {held.fds} file descriptors"
        for held in moments[-1].processes
        if held.role == KEEPS_FILES_OPEN and held.fds > MAX_OPEN_FILES
    ]
    if moments[-1].wal_bytes > MAX_WAL_BYTES:
        told.append(f"the database's write-ahead log has {moments[-1].wal_bytes} bytes")
    num_faults = sum(count for answer, count in ending.answers.items() if int(answer.rpartition(" ")[2]) >= 500)
    if num_faults:
        told.append(f"{num_faults} answers with 5xx")
    if not ending.models_trained:
        told.append("no model was trained")
    if ending.errors:
        told.append(f"{len(ending.errors)} errors in the service's logs, the first: {ending.errors[0]}")
    return told + list(ending.problems)


def _growth(what: str, role: str, pid: int, times: list[float], values: Sequence[int], most: float) -> Growth:
    quarter = max(1, len(values) // 4)
    return Growth(
        what,
        role,
        pid,
        statistics.median(values[:quarter]),
        statistics.median(values[-quarter:]),
        slope(times, values) * (times[-1] - times[0]),
        most,
    )


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between any two points; no two times may be the same."""
    points = zip(times, values, strict=True)
    return statistics.median((later[1] - one[1]) / (later[0] - one[0]) for one, later in combinations(points, 2))
