"""Adapters where a generator can use them: fetched when a request needs one, kept within budgets, pinned while used."""
