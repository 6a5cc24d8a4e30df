"""Credits as decimal numbers on the wire, whole microcredits inside. Pure."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import Field

from deployments.errors import InvalidParameter
from serve_app.ledger.credits import MICROCREDITS

Credits = Annotated[int | float, Field(ge=-1e11, le=1e11, description="Credits, with at most six decimal places.")]


def to_microcredits(credits: int | float | None, param: str) -> int | None:
    """None stays None. Raises InvalidParameter for more than six decimal places."""
    if credits is None:
        return None
    try:
        # The shortest decimal that means this float is what the client wrote.
        amount = Decimal(repr(credits)) * MICROCREDITS
        whole = amount.quantize(Decimal(1))
    except InvalidOperation:
        raise InvalidParameter(f"{param} is too large", param) from None
    if amount != whole:
        raise InvalidParameter(f"{param} must have at most six decimal places", param)
    return int(whole)


def to_credits(microcredits: int | None) -> int | float | None:
    """As JSON's number: whole credits without a point. None stays None."""
    if microcredits is None:
        return None
    whole, rest = divmod(microcredits, MICROCREDITS)
    return whole if rest == 0 else microcredits / MICROCREDITS
