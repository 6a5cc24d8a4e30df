"""Accounts: who is charged, with what credit. Knows no HTTP and no SQL."""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from deployments.errors import Conflict, InvalidParameter, NotFound
from serve_app.ledger.credits import MICROCREDITS
from serve_app.use_cases.audit import AuditEntry
from serve_app.use_cases.keys import check_name

MAX_AMOUNT = 10**17
"""The most that one grant moves, in microcredits; sums of a few such amounts still fit 64 bits."""

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Account:
    """credit: what is left to spend, None: no bound; reserved: of it, held for running requests; in microcredits.

    Times are seconds since 1970, UTC.
    """

    id: str
    name: str
    created_at: float
    closed_at: float | None = None
    credit: int | None = None
    reserved: int = 0


class AccountStore(Protocol):
    """Where accounts live. Every method returns once its effect, and the audit entry with it, outlives a crash."""

    async def add(self, account: Account, audit: AuditEntry) -> bool:
        """Stores a new account, with a grant of its credit. False where the id is taken."""

    async def get(self, account_id: str) -> Account | None:
        """The account of this id, closed ones too."""

    async def list(self, *, after: str | None = None, limit: int = 1000) -> Sequence[Account]:
        """By id, those after the given one; closed ones too."""

    async def rename(self, account_id: str, name: str, audit: AuditEntry) -> bool:
        """False where there is no such account."""

    async def close(self, account_id: str, closed_at: float, audit: AuditEntry) -> bool:
        """Its jobs that have not ended are cancelled, and webhooks told; of nothing that happens later they are told.

        Keeps the time of an earlier closing. False where there is no such account.
        """

    async def grant(self, account_id: str, amount: int, note: str, audit: AuditEntry) -> Account | None:
        """Adds to the credit, which becomes bounded, and to the list of grants. None where there is no such account."""

    async def set_unlimited(self, account_id: str, audit: AuditEntry) -> bool:
        """Takes the bound away. False where there is no such account."""


class Accounts:
    """The accounts of one service. `actor` names who does an administrative act, for the audit log."""

    def __init__(self, store: AccountStore, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now

    async def create(
        self, account_id: str | None = None, *, name: str | None = None, credit: int | None = None, actor: str
    ) -> Account:
        """A new account, by default with an id that nobody can guess, named like its id, with unbounded credit.

        Raises InvalidParameter where id, name or credit cannot be used; Conflict where the id is taken.
        """
        account_id = account_id if account_id is not None else f"acct_{secrets.token_hex(8)}"
        if not _ID.fullmatch(account_id):
            raise InvalidParameter(
                "an account's id has up to 100 letters, digits, dots, underscores and hyphens, the first of them "
                "a letter or digit",
                "id",
            )
        name = account_id if name is None else name
        check_name(name, "name")
        if credit is not None:
            _check_amount(credit)
        account = Account(account_id, name, self._now(), credit=credit)
        details = {"name": name, "credit": credit}
        if not await self._store.add(account, self._audit(actor, "account.create", account_id, **details)):
            raise Conflict(f"there is an account {account_id!r} already")
        return account

    async def ensure(self, account_id: str, *, actor: str) -> Account:
        """The account of this id, made where it is missing. Raises what `create` raises, but for Conflict."""
        found = await self._store.get(account_id)
        if found is not None:
            return found
        try:
            return await self.create(account_id, actor=actor)
        except Conflict:  # made by another process at this moment
            return await self.get(account_id)

    async def get(self, account_id: str) -> Account:
        """Raises NotFound."""
        return _found(await self._store.get(account_id), account_id)

    async def list(self, *, after: str | None = None, limit: int = 1000) -> Sequence[Account]:
        """Accounts by id, those after the given one, closed ones too."""
        return await self._store.list(after=after, limit=limit)

    async def rename(self, account_id: str, name: str, *, actor: str) -> Account:
        """Raises InvalidParameter, NotFound."""
        check_name(name, "name")
        await self._store.rename(account_id, name, self._audit(actor, "account.rename", account_id, name=name))
        return await self.get(account_id)

    async def close(self, account_id: str, *, actor: str) -> Account:
        """Ends an account for good: its keys are refused, as revoked ones are; its jobs end. Raises NotFound."""
        await self._store.close(account_id, self._now(), self._audit(actor, "account.close", account_id))
        return await self.get(account_id)

    async def grant(self, account_id: str, amount: int, *, note: str = "", actor: str) -> Account:
        """Adds microcredits to what the account may spend; an amount below zero takes them back.

        An account without a bound gets one: it may spend this amount from now on. Raises InvalidParameter, NotFound.
        """
        _check_amount(amount)
        if len(note) > 1000 or not note.isprintable():
            raise InvalidParameter("note must have at most 1000 printable characters", "note")
        audit = self._audit(actor, "account.grant", account_id, amount=amount, note=note)
        return _found(await self._store.grant(account_id, amount, note, audit), account_id)

    async def set_unlimited(self, account_id: str, *, actor: str) -> Account:
        """Takes the bound of the account's credit away. Raises NotFound."""
        await self._store.set_unlimited(account_id, self._audit(actor, "account.set_unlimited", account_id))
        return await self.get(account_id)

    def _audit(self, actor: str, action: str, account_id: str, **details: object) -> AuditEntry:
        return AuditEntry(self._now(), actor, action, account_id, details)


def _check_amount(amount: int) -> None:
    if not -MAX_AMOUNT <= amount <= MAX_AMOUNT:
        raise InvalidParameter(f"at most {MAX_AMOUNT // MICROCREDITS} credits can be granted at once", "amount")


def _found(account: Account | None, account_id: str) -> Account:
    if account is None:
        raise NotFound(f"there is no account {account_id!r}")
    return account
