"""Who is sent to next: nobody's slow endpoint fills the room of others."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.webhooks.sharing import (
    MAX_SENDING,
    MAX_SENDING_OF_ACCOUNT,
    MAX_SENDING_TO_ENDPOINT,
    Parcel,
    choose,
    full_accounts,
    full_endpoints,
)


@st.composite
def parcels(draw: st.DrawFn, prefix: str, max_size: int) -> list[Parcel]:
    places = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=max_size))
    return [
        Parcel(f"{prefix}{index}", f"account-{account}", f"endpoint-{account}-{endpoint}")
        for index, (account, endpoint) in enumerate(places)
    ]


@given(parcels("due", 300), parcels("sending", 200))
def test_bounds_hold_and_nothing_that_fits_is_left(due: list[Parcel], already: list[Parcel]) -> None:
    sending = choose(already, [])
    chosen = choose(due, sending)
    together = [*sending, *chosen]
    assert len(together) <= MAX_SENDING
    accounts = Counter(parcel.account for parcel in together)
    endpoints = Counter(parcel.endpoint for parcel in together)
    assert max(accounts.values(), default=0) <= MAX_SENDING_OF_ACCOUNT
    assert max(endpoints.values(), default=0) <= MAX_SENDING_TO_ENDPOINT
    assert chosen == [parcel for parcel in due if parcel in chosen]
    full = {*full_accounts(together), *full_endpoints(together)}
    for parcel in due:
        if parcel not in chosen:
            assert len(together) == MAX_SENDING or full & {parcel.account, parcel.endpoint}


def test_one_endpoint_does_not_keep_another_of_its_account_waiting() -> None:
    due = [Parcel(f"slow-{index}", "acme", "slow") for index in range(100)] + [Parcel("quick", "acme", "quick")]
    assert [parcel.id for parcel in choose(due, [])] == ["slow-0", "slow-1", "slow-2", "slow-3", "quick"]
