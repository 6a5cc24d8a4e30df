"""Windows: opened by their first use, all or none, definite ends; held against a model that remembers every request."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.limits.windows import Window, WindowState, consume, give_back

MINUTE = Window("minute", 3, 60.0)
DAY = Window("day", 5, 86400.0)
TOKENS = Window("tokens", 100, 60.0, "tokens")


def test_first_use_opens_a_window_that_ends_a_period_later() -> None:
    first = consume([MINUTE], {}, requests=1, tokens=0, now=1000.0)
    assert first.states == {"minute": WindowState(1000.0, 1)}
    [standing] = first.standings
    assert (standing.remaining, standing.resets_in_s) == (2, 60.0)
    later = consume([MINUTE], first.states, requests=1, tokens=0, now=1059.0)
    assert later.states == {"minute": WindowState(1000.0, 2)}
    assert later.standings[0].resets_in_s == 1.0
    anew = consume([MINUTE], later.states, requests=1, tokens=0, now=1060.0)
    assert anew.states == {"minute": WindowState(1060.0, 1)}


def test_full_window_refuses_and_consumes_nowhere() -> None:
    states = {"minute": WindowState(1000.0, 3), "day": WindowState(500.0, 3)}
    refused = consume([MINUTE, DAY], states, requests=1, tokens=0, now=1010.0)
    assert refused.states == {}
    assert [(standing.window.name, standing.resets_in_s) for standing in refused.full] == [("minute", 50.0)]
    assert [standing.remaining for standing in refused.standings] == [0, 2]


def test_tokens_are_counted_in_token_windows_only() -> None:
    consumption = consume([MINUTE, TOKENS], {}, requests=1, tokens=60, now=0.0)
    assert {name: state.used for name, state in consumption.states.items()} == {"minute": 1, "tokens": 60}
    assert consume([MINUTE, TOKENS], consumption.states, requests=1, tokens=41, now=1.0).full
    assert not consume([MINUTE, TOKENS], consumption.states, requests=1, tokens=40, now=1.0).full


def test_nothing_consumed_opens_nothing_and_tells_how_windows_stand() -> None:
    idle = consume([MINUTE, DAY], {"day": WindowState(0.0, 4)}, requests=0, tokens=0, now=10.0)
    assert idle.states == {} and idle.full == ()
    assert [(standing.remaining, standing.resets_in_s) for standing in idle.standings] == [(3, 0.0), (1, 86390.0)]


def test_lowered_quota_refuses_what_adds_and_shows_no_negative_rest() -> None:
    states = {"minute": WindowState(0.0, 50)}
    refused = consume([MINUTE], states, requests=1, tokens=0, now=1.0)
    assert refused.full and refused.standings[0].remaining == 0
    assert not consume([MINUTE], states, requests=0, tokens=10, now=1.0).full


def test_clock_set_back_keeps_a_window_at_most_its_period() -> None:
    state = {"minute": WindowState(1000.0, 3)}
    skewed = consume([MINUTE], state, requests=1, tokens=0, now=990.0)  # another machine's clock
    assert skewed.full[0].resets_in_s == 60.0
    assert not consume([MINUTE], state, requests=1, tokens=0, now=900.0).full  # nobody's clock is that much off


def test_give_back_reaches_only_the_window_it_was_taken_from() -> None:
    assert give_back(WindowState(10.0, 60), 25, counted_at=10.0) == WindowState(10.0, 35)
    assert give_back(WindowState(70.0, 60), 25, counted_at=69.0) == WindowState(70.0, 60)
    assert give_back(WindowState(10.0, 20), 25, counted_at=12.0) == WindowState(10.0, 0)


@given(
    quotas=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    periods=st.lists(st.integers(1, 50), min_size=3, max_size=3),
    gaps=st.lists(st.integers(0, 20), max_size=60),
)
def test_no_window_ever_lets_more_through_than_its_quota(
    quotas: list[int], periods: list[int], gaps: list[int]
) -> None:
    """From any request that opened a window on, its period lets at most its quota through."""
    windows = [Window(str(i), quota, float(periods[i])) for i, quota in enumerate(quotas)]
    states: dict[str, WindowState] = {}
    passed: dict[str, list[tuple[float, float]]] = {window.name: [] for window in windows}
    now = 0.0
    for gap in gaps:
        now += gap
        consumption = consume(windows, states, requests=1, tokens=0, now=now)
        states |= consumption.states
        if not consumption.full:
            for window in windows:
                passed[window.name].append((states[window.name].started_at, now))
    for window in windows:
        starts = {started_at for started_at, _ in passed[window.name]}
        for started_at in starts:
            inside = [at for start, at in passed[window.name] if start == started_at]
            assert len(inside) <= window.quota
            assert max(inside) < started_at + window.period_s
        assert all(b - a >= window.period_s for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False))


class WindowsMachine(RuleBasedStateMachine):
    """Two windows and a clock, against a list of every request that passed."""

    windows = (MINUTE, TOKENS)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.states: dict[str, WindowState] = {}
        self.opened_at: dict[str, float] = {}
        self.passed: list[tuple[float, int]] = []

    @rule(seconds=st.integers(0, 90))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(tokens=st.integers(0, 60))
    def call(self, tokens: int) -> None:
        requests_used, tokens_used = self.used("minute", 60.0), self.used("tokens", 60.0)
        fits = requests_used + 1 <= 3 and (tokens == 0 or tokens_used + tokens <= 100)
        consumption = consume(self.windows, self.states, requests=1, tokens=tokens, now=self.now)
        assert (not consumption.full) == fits
        self.states |= consumption.states
        if fits:
            for name in ("minute", "tokens"):
                adds = 1 if name == "minute" else tokens
                if adds and not self.is_open(name, 60.0):
                    self.opened_at[name] = self.now
            self.passed.append((self.now, tokens))
        for standing in consumption.standings:
            used = self.used(standing.window.name, 60.0)
            assert standing.remaining == standing.window.quota - used

    @invariant()
    def refused_requests_are_told_when_to_come_back(self) -> None:
        for standing in consume(self.windows, self.states, requests=1, tokens=1, now=self.now).full:
            back_at = self.now + standing.resets_in_s
            assert not [
                full
                for full in consume(self.windows, self.states, requests=1, tokens=1, now=back_at).full
                if full.window == standing.window
            ]

    def is_open(self, name: str, period_s: float) -> bool:
        return name in self.opened_at and self.now < self.opened_at[name] + period_s

    def used(self, name: str, period_s: float) -> int:
        if not self.is_open(name, period_s):
            return 0
        inside = [tokens for at, tokens in self.passed if at >= self.opened_at[name]]
        return len(inside) if name == "minute" else sum(inside)


TestWindows = WindowsMachine.TestCase
