"""Whose rows a query may see: the one place where an account narrows a query."""

from sqlalchemy import ColumnElement, FromClause


def owned_by(table: FromClause, account: str) -> ColumnElement[bool]:
    """Only the rows of this account. Every query on behalf of an account carries this condition."""
    return table.c.account == account
