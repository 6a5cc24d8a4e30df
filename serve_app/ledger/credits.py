"""Amounts: whole microcredits inside, credits as exact decimal numbers for people. Pure."""

from decimal import Decimal

MICROCREDITS = 1_000_000
"""In one credit."""


def spell_credits(microcredits: int) -> str:
    """The exact decimal number of credits, without needless zeros."""
    return f"{Decimal(microcredits) / MICROCREDITS:f}"
