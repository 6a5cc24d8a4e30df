"""How long packed sequences are, how many make a step, and how many steps there are."""

from dataclasses import dataclass

SHORTEST, LONGEST = 128, 1024
TOKENS_OF_STEP = 8192
STEPS_OF_EPOCH = 8
MAX_CHECKPOINTS = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """batch_size: packed sequences of one optimiser step. num_rows: of one pass over the data."""

    sequence_length: int
    batch_size: int
    num_rows: int
    epochs: int

    @property
    def num_items(self) -> int:
        """Sequences trained on in all; the last step may have fewer than the others."""
        return self.num_rows * self.epochs

    @property
    def total_steps(self) -> int:
        return -(-self.num_items // self.batch_size)

    def epoch(self, step: int) -> float:
        """How many passes over the data are done after so many steps."""
        return min(step * self.batch_size, self.num_items) / self.num_rows

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over the data ends within this step, counted from 1."""
        return int(self.epoch(step)) > int(self.epoch(step - 1))


def checkpoint_interval(total_steps: int, at_least: int) -> int:
    """Steps between two checkpoints: a hundredth of all, since many steps are quick ones, so that what a job leaves in
    the object store has a bound, and what is lost with a worker is a small part of the whole."""
    return max(at_least, -(-total_steps // MAX_CHECKPOINTS))


def choose_sequence_length(longest: int, context_length: int) -> int:
    """The power of two that holds the longest document, from SHORTEST to LONGEST, as far as the context goes.

    Attention costs what the length of the sequences says, so they are no longer than the documents need; documents of
    more than LONGEST tokens are split.
    """
    length = SHORTEST
    while length < min(longest, LONGEST):
        length *= 2
    return min(length, context_length)


def choose_batch_size(num_rows: int, sequence_length: int) -> int:
    """So many sequences that a pass over the data takes at least STEPS_OF_EPOCH steps, where there are as many, and
    that a step has at most TOKENS_OF_STEP tokens; a power of two."""
    most = min(num_rows // STEPS_OF_EPOCH, TOKENS_OF_STEP // sequence_length)
    batch_size = 1
    while batch_size * 2 <= most:
        batch_size *= 2
    return batch_size


def round_up(batch_size: int, num_workers: int) -> int:
    """The smallest multiple of `num_workers` that is no smaller: every worker has equally many sequences of a step."""
    return -(-batch_size // num_workers) * num_workers
