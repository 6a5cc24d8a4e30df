"""Limits of a key as they are written on a command line. Pure."""

import re
from dataclasses import replace

from deployments.errors import InvalidParameter
from serve_app.use_cases.callers import Dialect, KeyLimits, Window
from serve_app.use_cases.key_records import KeyGrant

_WINDOW = re.compile(r"([0-9A-Za-z]{1,50})=([0-9]{1,18})/([0-9]{1,9}(?:\.[0-9]+)?)(:tokens|:requests)?")


def parse_window(text: str) -> Window:
    """The window of `minute=100/60` or `day=5000000/86400:tokens`. Raises InvalidParameter."""
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"{text!r} is no window such as minute=100/60 or day=5000000/86400:tokens", "window")
    name, quota, period_s, counts = match.groups()
    return Window(name, int(quota), float(period_s), "tokens" if counts == ":tokens" else "requests")


def with_limits(grant: KeyGrant, dialect: Dialect, limits: KeyLimits | None) -> KeyGrant:
    """The grant with these limits for one dialect; None: the configured ones."""
    others = {own_dialect: own for own_dialect, own in grant.limits if own_dialect is not dialect}
    changed = others if limits is None else {**others, dialect: limits}
    return replace(grant, limits=tuple((known, changed[known]) for known in Dialect if known in changed))
