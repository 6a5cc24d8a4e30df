"""Fixed windows that their first use opens: what they let through and how they stand. Pure; knows no storage.

A window of 100 requests in 60 seconds lets 100 requests through in the 60 seconds from its first one on; the next
request after these opens it anew. So every window has a definite end, which a client can be told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Window:
    """At most `quota` requests or tokens of one key in a window of `period_s` seconds, which its first use opens."""

    name: str
    quota: int
    period_s: float
    counts: Literal["requests", "tokens"] = "requests"


@dataclass(frozen=True, slots=True)
class WindowStanding:
    """How a window stands after a request was counted: what is left, and in how many seconds it is whole again."""

    window: Window
    remaining: int
    resets_in_s: float


@dataclass(frozen=True, slots=True)
class WindowState:
    """What is stored of a window. started_at: seconds since 1970."""

    started_at: float
    used: int


@dataclass(frozen=True, slots=True)
class Consumption:
    """states: what to store of the windows that changed, by name: all that the request counts in, or none.
    standings: how every window stands then. full: those that had no room for the request."""

    states: Mapping[str, WindowState]
    standings: tuple[WindowStanding, ...]
    full: tuple[WindowStanding, ...]


def consume(
    windows: Sequence[Window], states: Mapping[str, WindowState], *, requests: int, tokens: int, now: float
) -> Consumption:
    """Counts a request in all its windows, or in none where one has no room. Zero consumes nothing and tells how
    the windows stand."""
    before = {window.name: _at(window, states.get(window.name), now) for window in windows}
    after = {window.name: _add(before[window.name], requests, tokens, window, now) for window in windows}
    full = tuple(_standing(window, before[window.name], now) for window in windows if _overflows(window, before, after))
    stored = before if full else after
    return Consumption(
        states={name: state for name, state in stored.items() if state is not None and state != before[name]},
        standings=tuple(_standing(window, stored[window.name], now) for window in windows),
        full=full,
    )


def give_back(state: WindowState, amount: int, *, counted_at: float) -> WindowState:
    """The window without `amount` of what was counted at that time; unchanged if it was opened anew since."""
    if state.started_at > counted_at:
        return state
    return WindowState(state.started_at, max(0, state.used - amount))


def _at(window: Window, state: WindowState | None, now: float) -> WindowState | None:
    """The window if it is open now. One that seems to begin more than its period ahead was opened under a clock that
    has been set back since; less than that is the difference between the clocks of two machines."""
    if state is None or now >= state.started_at + window.period_s or state.started_at > now + window.period_s:
        return None
    return state


def _add(state: WindowState | None, requests: int, tokens: int, window: Window, now: float) -> WindowState | None:
    amount = requests if window.counts == "requests" else tokens
    if state is None:
        return WindowState(now, amount) if amount else None
    return WindowState(state.started_at, state.used + amount)


def _overflows(
    window: Window, before: Mapping[str, WindowState | None], after: Mapping[str, WindowState | None]
) -> bool:
    """A window that holds more than its quota already (which was lowered) still lets through what adds nothing."""
    state = after[window.name]
    return state is not None and state.used > window.quota and state != before[window.name]


def _standing(window: Window, state: WindowState | None, now: float) -> WindowStanding:
    if state is None:
        return WindowStanding(window, window.quota, 0.0)
    resets_in_s = min(window.period_s, state.started_at + window.period_s - now)
    return WindowStanding(window, max(0, window.quota - state.used), resets_in_s)
