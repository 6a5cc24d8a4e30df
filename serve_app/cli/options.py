"""What several commands take, and how amounts and times are written on a command line."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from deployments.errors import InvalidParameter
from serve_app.ledger.credits import MICROCREDITS, spell_credits

Config = Annotated[Path, typer.Option(help="A Serve configuration file; its `args` say what to run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_ACCOUNT = "default"
DEFAULT_PORT = 8000
LOCAL_CONFIG = Path("infra/serve/local.yaml")


def to_microcredits(credits: str) -> int:
    """The amount of a decimal number of credits. Raises InvalidParameter."""
    try:
        amount = Decimal(credits) * MICROCREDITS
        if amount == amount.to_integral_value():
            return int(amount)
    except (InvalidOperation, OverflowError, ValueError):
        pass
    raise InvalidParameter(f"{credits!r} is no number of credits with at most six decimal places", "credits")


def credits_or_none(microcredits: int | None) -> str | None:
    return None if microcredits is None else spell_credits(microcredits)


def to_iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def to_seconds(moment: datetime | None) -> float | None:
    """A time without a zone is in UTC."""
    return None if moment is None else moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
