"""Which of the deliveries that are due are sent next, so that slow endpoints hold nobody else up. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

MAX_SENDING = 64
"""Deliveries that one process sends at the same time."""
MAX_SENDING_OF_ACCOUNT = 16
MAX_SENDING_TO_ENDPOINT = 4


@dataclass(frozen=True, slots=True)
class Parcel:
    """A delivery, and whose it is."""

    id: str
    account: str
    endpoint: str


def choose(due: Iterable[Parcel], sending: Collection[Parcel]) -> list[Parcel]:
    """Those of `due`, the first ones first, for which there is room beside those that are being sent."""
    accounts = Counter(parcel.account for parcel in sending)
    endpoints = Counter(parcel.endpoint for parcel in sending)
    chosen: list[Parcel] = []
    for parcel in due:
        if len(sending) + len(chosen) >= MAX_SENDING:
            break
        has_room = accounts[parcel.account] < MAX_SENDING_OF_ACCOUNT
        if has_room and endpoints[parcel.endpoint] < MAX_SENDING_TO_ENDPOINT:
            accounts[parcel.account] += 1
            endpoints[parcel.endpoint] += 1
            chosen.append(parcel)
    return chosen


def full_accounts(sending: Iterable[Parcel]) -> list[str]:
    """The accounts for which nothing more may be sent at this moment."""
    return _full(Counter(parcel.account for parcel in sending), MAX_SENDING_OF_ACCOUNT)


def full_endpoints(sending: Iterable[Parcel]) -> list[str]:
    """The endpoints to which nothing more may be sent at this moment."""
    return _full(Counter(parcel.endpoint for parcel in sending), MAX_SENDING_TO_ENDPOINT)


def _full(numbers: Counter[str], most: int) -> list[str]:
    return sorted(name for name, number in numbers.items() if number >= most)
