"""The edits of the logits, against transformers' own processors and against their definitions."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from deployments.engine.sampling.edits import edit_logits
from deployments.engine.sampling.sequence_state import SequenceState
from deployments.types import SamplingParams

V = 30
EOS = frozenset({0, 1})

token = st.integers(0, V - 1)
tokens = st.lists(token, max_size=12)
seeds = st.integers(0, 2**32)


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4


def state(params: SamplingParams, prompt=()) -> SequenceState:
    return SequenceState(params, prompt, vocab_size=V, eos_token_ids=EOS)


def edited(logits, params, *, prompt=(), output=()) -> torch.Tensor:
    result = logits.clone()
    edit_logits(result, [state(params, prompt)], [len(output)], [output])
    return result


def ids(token_ids) -> torch.Tensor:
    return torch.tensor([list(token_ids)], dtype=torch.int64)


@settings(deadline=None)
@given(seeds, tokens, tokens, st.floats(0.05, 5))
def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output(seed, prompt, output, penalty):
    logits = random_logits(seed)
    ours = edited(logits, SamplingParams(repetition_penalty=penalty), prompt=prompt, output=output)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids(prompt + output), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(seeds, tokens, tokens, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_penalties_count_the_output_alone(seed, prompt, output, presence, frequency):
    logits = random_logits(seed)
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    expected = logits.clone()
    for token_id, count in Counter(output).items():
        expected[0, token_id] -= presence + frequency * count
    torch.testing.assert_close(edited(logits, params, prompt=prompt, output=output), expected)


def test_repetition_comes_before_frequency_and_presence():
    logits = torch.full((1, V), 6.0, dtype=torch.float64)
    params = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    result = edited(logits, params, prompt=[3], output=[4, 4])
    assert result[0, 3] == 3.0
    assert result[0, 4] == 3.0 - 2 * 0.5 - 0.25
    assert result[0, 5] == 6.0


@settings(deadline=None)
@given(seeds, st.dictionaries(token, st.floats(-100, 100, width=32), min_size=1))  # transformers adds float32
def test_logit_bias_is_that_of_transformers(seed, bias):
    logits = random_logits(seed)
    ours = edited(logits, SamplingParams(logit_bias=tuple(bias.items())))
    theirs = SequenceBiasLogitsProcessor({(token_id,): value for token_id, value in bias.items()})(ids([2]), logits)
    torch.testing.assert_close(ours, theirs)


@settings(deadline=None)
@given(
    seeds,
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=5),
    st.lists(st.integers(0, 3), min_size=3, max_size=8),
)
def test_bad_words_are_those_of_transformers_over_the_output(seed, bad_words, output):
    logits = random_logits(seed)
    ours = edited(logits, SamplingParams(bad_words_token_ids=tuple(map(tuple, bad_words))), output=output)
    theirs = NoBadWordsLogitsProcessor(bad_words)(ids(output), logits)
    assert torch.equal(ours, theirs)


def test_a_bad_word_that_begins_in_the_prompt_is_not_banned():
    params = SamplingParams(bad_words_token_ids=((5, 6),))
    assert not edited(random_logits(0), params, prompt=[5]).isinf().any()
    assert edited(random_logits(0), params, output=[5])[0].isneginf().nonzero().tolist() == [[6]]


def test_a_bad_word_longer_than_the_output_is_not_banned():
    params = SamplingParams(bad_words_token_ids=((4, 5, 6),))
    assert not edited(random_logits(0), params, output=[5]).isinf().any()


@settings(deadline=None)
@given(seeds, st.lists(token, min_size=1))
def test_allowed_tokens_suppress_all_others(seed, allowed):
    logits = random_logits(seed)
    suppressed = sorted(set(range(V)).difference(allowed))
    ours = edited(logits, SamplingParams(allowed_token_ids=tuple(allowed)))
    theirs = SuppressTokensLogitsProcessor(suppressed)(ids([2]), logits) if suppressed else logits
    assert torch.equal(ours, theirs)


@settings(deadline=None)
@given(seeds, st.integers(0, 6), tokens)
def test_min_tokens_mask_end_tokens_as_in_transformers(seed, min_tokens, output):
    logits = random_logits(seed)
    ours = edited(logits, SamplingParams(min_tokens=min_tokens, stop_token_ids=(9,)), prompt=[2, 3], output=output)
    theirs = MinNewTokensLengthLogitsProcessor(2, min_tokens, [*EOS, 9])(ids([2, 3, *output]), logits)
    assert torch.equal(ours, theirs)


def test_min_tokens_leave_end_of_text_alone_where_it_ends_nothing():
    params = SamplingParams(min_tokens=3, stop_token_ids=(9,), ignore_eos=True)
    assert edited(random_logits(0), params)[0].isneginf().nonzero().tolist() == [[9]]


PARAMS = [
    SamplingParams(),
    SamplingParams(allowed_token_ids=(1, 2, 3, 20)),
    SamplingParams(logit_bias=((3, 5.0), (4, -100.0))),
    SamplingParams(bad_words_token_ids=((7,), (4, 5)), min_tokens=9),
    SamplingParams(repetition_penalty=1.5, frequency_penalty=0.3),
    SamplingParams(presence_penalty=-1.0, allowed_token_ids=(4, 5), logit_bias=((4, 1.0),)),
]


@settings(deadline=None)
@given(seeds, st.lists(st.tuples(st.sampled_from(PARAMS), tokens, tokens), min_size=1, max_size=8))
def test_rows_of_a_batch_are_edited_as_each_alone(seed, sequences):
    logits = random_logits(seed, len(sequences)).float()
    together = logits.clone()
    edit_logits(
        together,
        [state(params, prompt) for params, prompt, _ in sequences],
        [len(output) for _, _, output in sequences],
        [output for _, _, output in sequences],
    )
    for row, (params, prompt, output) in enumerate(sequences):
        assert torch.equal(together[row : row + 1], edited(logits[row : row + 1], params, prompt=prompt, output=output))


@settings(deadline=None)
@given(seeds, tokens, st.lists(token, min_size=1, max_size=200))
def test_a_kept_state_gives_what_a_new_one_gives(seed, prompt, output):
    params = SamplingParams(repetition_penalty=1.3, frequency_penalty=0.2, bad_words_token_ids=((3, 4),))
    logits = random_logits(seed)
    kept = state(params, prompt)
    for length in range(0, len(output) + 1, 3):
        result = logits.clone()
        edit_logits(result, [kept], [length], [output[:length]])
        assert torch.equal(result, edited(logits, params, prompt=prompt, output=output[:length]))


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_penalties_make_no_infinity_and_lift_no_ban(penalty, dtype):
    logits = torch.tensor([[5.0, -5.0, 0.0, -torch.inf] + [1.0] * (V - 4)], dtype=dtype)
    result = edited(logits, SamplingParams(repetition_penalty=penalty), prompt=[0, 1, 2, 3])
    assert result[0].isinf().nonzero().tolist() == [[3]]
    assert not result.isnan().any()


def test_ids_outside_the_vocabulary_do_nothing():
    params = SamplingParams(
        logit_bias=((V, 5.0), (-1, 5.0)),
        bad_words_token_ids=((V,), (-3,), ()),
        min_tokens=2,
        stop_token_ids=(V + 7, -1),
        ignore_eos=True,
        repetition_penalty=1.5,
    )
    logits = random_logits(0)
    assert torch.equal(edited(logits, params, prompt=[V, -1], output=[V + 2]), logits)


def test_parameters_that_ask_for_nothing_edit_nothing():
    assert not state(SamplingParams(temperature=0.3, top_p=0.5, top_k=3, min_p=0.1, logprobs=2)).edits_logits
    for params in PARAMS[1:]:
        assert state(params).edits_logits
