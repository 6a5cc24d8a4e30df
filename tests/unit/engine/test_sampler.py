"""The sampler as the engine uses it: whole rows with all their parameters, in batches."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deployments.engine.sampler import Sampler, SamplerRow
from deployments.errors import GenerationFailed, InvalidRequest
from deployments.types import SamplingParams

V = 200
EOS = 2
GREEDY = SamplingParams(temperature=0.0)


def sampler(vocab_size: int = V) -> Sampler:
    return Sampler(vocab_size, frozenset({EOS}))


def row(params: SamplingParams = GREEDY, *, index: int = 0, position: int | None = None, prompt=(5, 6), output=()):
    return SamplerRow(params, index, len(output) if position is None else position, prompt, output)


def random_logits(rows: int, seed: int = 0, vocab_size: int = V) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def counts_over_seeds(logits: torch.Tensor, params: SamplingParams, num_seeds: int, **of_row) -> torch.Tensor:
    rows = [row(replace(params, seed=seed * 7919 - 1000), **of_row) for seed in range(num_seeds)]
    tokens = sampler(len(logits)).sample(logits.expand(num_seeds, -1), rows).token_ids
    return torch.bincount(torch.tensor(tokens), minlength=len(logits))


def assert_drawn_from(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square over the tokens expected at least five times, the others in one class."""
    expected = probabilities.double() * counts.sum()
    assert not counts[probabilities == 0].any()
    common = expected >= 5
    observed = [*counts[common].tolist(), int(counts[~common].sum())]
    wanted = [*expected[common].tolist(), float(expected[~common].sum())]
    if wanted[-1] < 5:
        observed[-2:], wanted[-2:] = [sum(observed[-2:])], [sum(wanted[-2:])]
    scale = sum(observed) / sum(wanted)
    assert stats.chisquare(observed, [value * scale for value in wanted]).pvalue > 1e-4


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    logits = random_logits(3)
    logits[1] = 0.0
    logits[2, [70, 150]] = 50.0
    found = sampler().sample(logits, [row(), row(), row()])
    assert found.token_ids == [int(logits[0].argmax()), 0, 70]
    assert found.logprobs == [None, None, None]
    assert not found.failed


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_greedy_agrees_with_argmax(seed, vocab_size):
    logits = random_logits(4, seed, vocab_size).round()
    assert sampler(vocab_size).sample(logits, [row()] * 4).token_ids == logits.argmax(1).tolist()


def test_greedy_comes_after_bans_and_penalties():
    logits = torch.zeros(1, V)
    logits[0, [10, 11, 12]] = torch.tensor([5.0, 4.0, 3.0])
    params = replace(GREEDY, bad_words_token_ids=((10,),), frequency_penalty=2.0)
    assert sampler().sample(logits, [row(params, output=[11])]).token_ids == [12]


def test_top_p_zero_takes_the_likeliest_at_any_temperature():
    logits = random_logits(1).expand(50, -1)
    rows = [row(SamplingParams(temperature=100.0, top_p=0.0, seed=seed)) for seed in range(50)]
    assert set(sampler().sample(logits, rows).token_ids) == {int(logits[0].argmax())}


def test_top_p_zero_compares_logits_and_not_probabilities_that_a_temperature_made_equal():
    logits = torch.zeros(1, V)
    logits[0, [3, 4]] = torch.tensor([1.0, 1.0 + 2**-23])
    assert sampler().sample(logits, [row(SamplingParams(temperature=100.0, top_p=0.0))]).token_ids == [4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_tokens_over_many_seeds_follow_the_distribution(temperature):
    logits = random_logits(1)[0]
    counts = counts_over_seeds(logits, SamplingParams(temperature=temperature), 20_000)
    assert_drawn_from(counts, (logits.double() / temperature).softmax(0))


def test_tokens_over_many_seeds_follow_the_truncated_distribution():
    logits = random_logits(1)[0]
    weights = logits.double().exp()
    kept = weights.where(weights >= weights.topk(12).values[-1], 0.0)
    counts = counts_over_seeds(logits, SamplingParams(top_k=12), 20_000)
    assert_drawn_from(counts, kept / kept.sum())


def test_tokens_over_positions_and_over_sequences_follow_the_distribution():
    logits = random_logits(1)[0]
    params = SamplingParams(seed=-3)
    expanded = logits.expand(20_000, -1)
    for rows in (
        [row(params, position=position) for position in range(20_000)],
        [row(params, index=index) for index in range(20_000)],
    ):
        tokens = torch.tensor(sampler().sample(expanded, rows).token_ids)
        assert_drawn_from(torch.bincount(tokens, minlength=V), logits.double().softmax(0))


def test_penalties_and_bias_shift_the_distribution_drawn_from():
    logits = random_logits(1)[0]
    params = SamplingParams(presence_penalty=1.5, repetition_penalty=1.8, logit_bias=((9, 2.0),))
    expected = logits.double().clone()
    expected[9] += 2.0
    for token_id in (5, 6, 40):
        expected[token_id] *= 1.8 if expected[token_id] < 0 else 1 / 1.8
    expected[40] -= 1.5
    counts = counts_over_seeds(logits, params, 20_000, output=[40])
    assert_drawn_from(counts, expected.softmax(0))


def test_one_seed_gives_different_tokens_to_sequences_and_positions_and_the_same_again():
    logits = torch.zeros(40, V)
    rows = [row(SamplingParams(seed=1), index=i, position=j) for i in range(5) for j in range(8)]
    first = sampler().sample(logits, rows).token_ids
    assert len(set(first)) > 25
    assert sampler().sample(logits, rows).token_ids == first


KINDS = [
    GREEDY,
    SamplingParams(seed=4),
    SamplingParams(seed=-9, temperature=0.6, top_p=0.9, repetition_penalty=1.2),
    SamplingParams(top_k=10, min_p=0.05, logit_bias=((3, 4.0),), logprobs=3),
    SamplingParams(temperature=100.0, min_tokens=5, stop_token_ids=(7,), logprobs=0),
    SamplingParams(temperature=0.0, frequency_penalty=1.0, bad_words_token_ids=((8,), (9, 10)), logprobs=-1),
    SamplingParams(allowed_token_ids=(1, 4, 9, 16, 25), top_p=0.8),
]


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.lists(st.integers(0, V - 1), max_size=6)),
        min_size=1,
        max_size=12,
    ),
)
def test_a_row_gives_the_same_alone_and_in_any_batch(seed, sequences):
    logits = random_logits(len(sequences), seed)
    rows = [row(params, index=index, output=output) for params, index, output in sequences]
    together = sampler().sample(logits, rows)
    for place, one in enumerate(rows):
        alone = sampler().sample(logits[place : place + 1], [one])
        assert alone.token_ids == [together.token_ids[place]]
        assert alone.logprobs == [together.logprobs[place]]


def test_a_kept_state_changes_nothing():
    params = SamplingParams(repetition_penalty=1.4, presence_penalty=0.6, temperature=1.3, min_tokens=4)
    chooser = sampler()
    state = chooser.new_state(params, (5, 6))
    output: list[int] = []
    for position in range(30):
        logits = random_logits(1, position)
        fresh = row(params, output=list(output))
        kept = replace(fresh, state=state)
        token_ids = chooser.sample(logits, [kept]).token_ids
        assert chooser.sample(logits, [fresh]).token_ids == token_ids
        output += token_ids


def test_the_logits_stay_as_they_are():
    logits = random_logits(len(KINDS))
    before = logits.clone()
    sampler().sample(logits, [row(params, output=[3, 4]) for params in KINDS])
    assert torch.equal(logits, before)


def test_logprobs_are_those_of_the_raw_logits():
    logits = random_logits(3)
    params = SamplingParams(temperature=0.2, top_k=2, logit_bias=((7, 60.0),), repetition_penalty=3.0, logprobs=4)
    rows = [row(params), row(), row(replace(params, logprobs=-1))]
    found = sampler().sample(logits, rows)
    raw = logits.double().log_softmax(1)
    four, none, every = found.logprobs
    assert none is None
    assert found.token_ids[0] == found.token_ids[2] == 7
    assert four.token_id == 7
    assert four.logprob == pytest.approx(raw[0, 7].item(), abs=1e-5)
    assert four.top_token_ids == tuple(raw[0].topk(4).indices.tolist())
    assert four.top_logprobs == pytest.approx(raw[0].topk(4).values.tolist(), abs=1e-5)
    assert sorted(every.top_token_ids) == list(range(V))
    assert torch.tensor(every.top_logprobs).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert list(every.top_logprobs) == sorted(every.top_logprobs, reverse=True)


def test_logprobs_zero_gives_the_chosen_token_alone():
    logits = random_logits(1)
    (entry,) = sampler().sample(logits, [row(replace(GREEDY, logprobs=0))]).logprobs
    assert entry.token_id == int(logits.argmax())
    assert entry.top_token_ids == ()


def test_equal_alternatives_are_reported_by_token_id():
    (entry,) = sampler().sample(torch.zeros(1, V), [row(replace(GREEDY, logprobs=5))]).logprobs
    assert entry.top_token_ids == (0, 1, 2, 3, 4)


def test_a_token_the_model_excludes_has_a_logprob_of_minus_infinity():
    logits = torch.zeros(1, V)
    logits[0, 1] = -torch.inf
    (entry,) = sampler().logprobs_of(logits, [1], -1)
    assert entry.logprob == float("-inf")
    assert entry.top_token_ids[-1] == 1


def test_logprobs_of_a_long_prompt_are_those_of_log_softmax():
    logits = random_logits(77)
    next_token_ids = torch.randint(V, (77,), generator=torch.Generator().manual_seed(1)).tolist()
    found = sampler().logprobs_of(logits, next_token_ids, 3)
    raw = logits.double().log_softmax(1)
    assert [entry.token_id for entry in found] == next_token_ids
    assert [entry.logprob for entry in found] == pytest.approx(
        [raw[place, token_id].item() for place, token_id in enumerate(next_token_ids)], abs=1e-5
    )
    assert [list(entry.top_token_ids) for entry in found] == raw.topk(3).indices.tolist()
    assert sampler().logprobs_of(logits[:0], [], 3) == []


def test_logprobs_of_a_broken_output_fail():
    logits = random_logits(2)
    logits[1, 5] = torch.nan
    with pytest.raises(GenerationFailed):
        sampler().logprobs_of(logits, [1, 2], 3)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("params", KINDS, ids=range(len(KINDS)))
def test_a_broken_row_fails_alone(broken, params):
    logits = random_logits(3)
    rows = [row(KINDS[1]), row(params), row(replace(KINDS[2], logprobs=2))]
    healthy = sampler().sample(logits, rows)
    logits[1, 77] = broken
    found = sampler().sample(logits, rows)
    assert list(found.failed) == [1]
    assert isinstance(found.failed[1], GenerationFailed)
    assert found.token_ids == [healthy.token_ids[0], -1, healthy.token_ids[2]]
    assert found.logprobs == [None, None, healthy.logprobs[2]]


def test_a_row_of_minus_infinities_fails():
    found = sampler().sample(torch.full((1, V), -torch.inf), [row(SamplingParams())])
    assert isinstance(found.failed[0], GenerationFailed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "constraints",
    [
        {"allowed_token_ids": (EOS,), "min_tokens": 3},
        {"allowed_token_ids": (4, 5), "bad_words_token_ids": ((4,), (5,))},
        {"allowed_token_ids": ()},
        {"allowed_token_ids": (V + 1,)},
    ],
    ids=["end only", "bad words only", "nothing", "outside the vocabulary"],
)
def test_constraints_that_leave_no_token_fail_their_row_alone(constraints, temperature):
    impossible = SamplingParams(temperature=temperature, **constraints)
    found = sampler().sample(random_logits(3), [row(), row(impossible), row(SamplingParams())])
    assert list(found.failed) == [1]
    assert isinstance(found.failed[1], InvalidRequest)
    assert found.token_ids[1] == -1
    assert min(found.token_ids[0], found.token_ids[2]) >= 0


def test_end_tokens_are_drawn_only_from_the_minimum_length_on():
    logits = torch.zeros(V)
    logits[[EOS, 7]] = 20.0
    params = SamplingParams(min_tokens=2, stop_token_ids=(7,))
    early = counts_over_seeds(logits, params, 500, position=1)
    late = counts_over_seeds(logits, params, 500, position=2)
    assert early[[EOS, 7]].sum() == 0
    assert late[[EOS, 7]].sum() > 490


def test_an_empty_batch_gives_nothing():
    found = sampler().sample(torch.zeros(0, V), [])
    assert (found.token_ids, found.logprobs, found.failed) == ([], [], {})


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, V), torch.zeros(1, V + 1), torch.zeros(V), torch.zeros(1, V, dtype=torch.bfloat16)]
)
def test_logits_of_another_shape_or_type_are_refused(logits):
    with pytest.raises(ValueError, match="expected float32 or float64 logits"):
        sampler().sample(logits, [row()])
