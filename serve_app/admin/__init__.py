"""Administration over HTTP: accounts, keys, credits, usage, ledger, audit log; and what a key sees of its own."""
