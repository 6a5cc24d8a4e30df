"""The model side of Tritext: the shared graph and what its nodes need. Knows no HTTP, no keys, no SQL."""
