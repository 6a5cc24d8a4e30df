"""What of a stream counts as delivered: what was shown, and never more."""

from deployments.types import FinishReason, GenerateChunk, GenerateRequest, GenerateResult, SamplingParams, Usage
from serve_app.ledger.entries import Counts
from serve_app.use_cases.delivery import StreamCounts, most, whole


def make_counts(*, detokenize: bool = True, drop_output: bool = False) -> StreamCounts:
    return StreamCounts(detokenize=detokenize, drop_output=drop_output)


def test_prompt_counts_once_with_the_first_piece_that_shows_something() -> None:
    counts = make_counts()
    assert counts.add(0, 7, GenerateChunk(0, (1,), "")) == Counts()
    assert counts.add(0, 7, GenerateChunk(0, (2, 3), "ab")) == Counts(7, 3, 2)
    assert counts.add(0, 7, GenerateChunk(1, (4,), "c")) == Counts(0, 1, 1)
    assert counts.add(1, 9, GenerateChunk(0, (5,), "d")) == Counts(9, 1, 1)


def test_held_back_tokens_count_with_their_own_sequence() -> None:
    counts = make_counts()
    counts.add(0, 1, GenerateChunk(0, (1, 2), ""))
    assert counts.add(0, 1, GenerateChunk(1, (3,), "x")).completion_tokens == 1
    assert counts.add(0, 1, GenerateChunk(0, (), "", finish_reason=FinishReason.STOP)).completion_tokens == 2


def test_code_points_are_counted_not_bytes() -> None:
    assert make_counts().add(0, 0, GenerateChunk(0, (1, 2), "é👍")).characters == 2


def test_tokens_count_at_once_where_no_text_is_made_or_log_probabilities_show_them() -> None:
    assert make_counts(detokenize=False).add(0, 2, GenerateChunk(0, (1,), "")) == Counts(2, 1)
    assert make_counts().add(0, 2, GenerateChunk(0, (1,), "", logprobs=())) == Counts(2, 1)


def test_dropped_output_leaves_the_prompt() -> None:
    end = GenerateChunk(0, (1,), "x", finish_reason=FinishReason.LENGTH)
    assert make_counts(drop_output=True).add(0, 4, end) == Counts(4)
    assert whole(GenerateResult((), None, Usage(4, 1)), drop_output=True) == Counts(4)


def test_most_is_every_sequence_at_full_length() -> None:
    request = GenerateRequest("r", "base", (1, 2), SamplingParams(max_tokens=8, max_characters=20), num_sequences=3)
    assert most(request, drop_output=False) == Counts(2, 24, 60)
    assert most(request, drop_output=True) == Counts(2)
