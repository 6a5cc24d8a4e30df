"""What a run sends, the same to every contender."""

MAX_TOKENS = 128
NUM_REQUESTS = {1: 6, 8: 16, 32: 64}
"""Requests of a cell, by the number of clients."""

PREFILL_LENGTHS = (64, 256, 512)
PREFILL_REPEATS = 5
WARM_UP_TOKENS = 32

REPEATED_CHARACTERS = 3000
ADDED_CHARACTERS = 100
"""A prompt of so many characters is sent, and then again with so many more after it."""

REPEATS = 5
