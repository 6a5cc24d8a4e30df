"""How often a key may call: pure arithmetic. Knows no storage, no HTTP and no dialect."""
