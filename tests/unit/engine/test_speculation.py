"""Guessing ahead changes how many steps it takes, and nothing else."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from deployments.config import EngineConfig
from deployments.engine.core import EngineCore
from deployments.engine.sampler import Sampler
from deployments.engine.sequence import Sequence
from deployments.types import FinishReason, SamplingParams
from tests.unit.engine.paged_fake import PagedFakeRunner

VOCAB_SIZE = 12
CONTEXT_LENGTH = 60
EOS = frozenset({11})


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    sampling: dict[str, Any]
    generated: list[list[int]]
    arrival: int


TOKENS = st.integers(0, VOCAB_SIZE - 1)
SAMPLING = st.fixed_dictionaries(
    {"max_tokens": st.integers(4, 40)},
    optional={
        "seed": st.integers(0, 5),
        # The fake's logits are 20 and 0: at 7 the likeliest token has six tenths.
        "temperature": st.sampled_from([0.0, 7.0]),
        "top_p": st.sampled_from([0.9, 0.7]),
        "top_k": st.integers(1, 3),
        "min_tokens": st.integers(1, 12),
        "stop_token_ids": st.tuples(TOKENS),
        "ignore_eos": st.booleans(),
        "bad_words_token_ids": st.tuples(st.tuples(TOKENS, TOKENS), st.tuples(TOKENS)),
        "logit_bias": st.tuples(st.tuples(TOKENS, st.sampled_from([-30.0, 10.0]))),
        "allowed_token_ids": st.sampled_from([(1, 2, 3), (4, 5, 6, 7, 8, 9, 10, 11)]),
        "frequency_penalty": st.sampled_from([0.5, 3.0]),
        "presence_penalty": st.sampled_from([2.0]),
        "repetition_penalty": st.sampled_from([1.5]),
        "logprobs": st.integers(0, 3),
        "prompt_logprobs": st.integers(0, 1),
    },
)
REQUESTS = st.lists(
    st.builds(
        Request,
        prompt=st.lists(TOKENS, min_size=1, max_size=18),
        sampling=SAMPLING,
        generated=st.lists(st.lists(TOKENS, max_size=3), min_size=1, max_size=3),
        arrival=st.integers(0, 12),
    ),
    min_size=1,
    max_size=5,
)


def answers(requests: list[Request], *, num_seen: int, num_blocks: int = 200, **config: Any) -> tuple[Any, int]:
    """All that each sequence was given, and in how many steps."""
    runner = PagedFakeRunner(num_blocks, 3, VOCAB_SIZE)
    runner.num_seen = num_seen
    core = EngineCore(runner, Sampler(VOCAB_SIZE, EOS, runner.device), EngineConfig(block_size=3, **config))
    given_to: dict[tuple[int, int], list[Any]] = defaultdict(list)
    keys = count()
    arrivals = sorted(enumerate(requests), key=lambda pair: pair[1].arrival)
    for step in range(3000):
        while arrivals and (arrivals[0][1].arrival <= step or not core.has_work):
            group, request = arrivals.pop(0)
            core.add(group, sequences(keys, group, request))
        if not core.has_work:
            return dict(given_to), len(runner.batches)
        result = core.step()
        for group, deltas in result.deltas.items():
            for delta in deltas:
                given = given_to[group, delta.index]
                given += zip(delta.token_ids, delta.logprobs or [None] * len(delta.token_ids), strict=True)
                given += [part for part in (delta.finish_reason, delta.stop_token_id) if part]
                if delta.prompt_logprobs:
                    given.insert(0, delta.prompt_logprobs)  # they come with the first token, however many are with it
        for group, error in result.failed.items():
            given_to[group, -1].append(repr(error))
    raise AssertionError("the engine did not come to an end")


def sequences(keys: Any, group: int, request: Request) -> list[Sequence]:
    params = SamplingParams(**{"temperature": 0.0, **request.sampling})
    return [
        Sequence(
            key=next(keys),
            group=group,
            index=index,
            prompt_token_ids=tuple(request.prompt),
            params=params,
            eos_token_ids=EOS,
            context_length=CONTEXT_LENGTH,
            output_token_ids=list(generated),
            wants_prompt_logprobs=index == 0 and params.prompt_logprobs is not None,
        )
        for index, generated in enumerate(request.generated)
    ]


@settings(max_examples=150)
@given(
    requests=REQUESTS,
    num_seen=st.integers(1, 3),
    num_blocks=st.integers(20, 40),
    max_num_seqs=st.integers(1, 6),
    max_batched_tokens=st.integers(1, 24),
    reuse=st.booleans(),
)
def test_guessing_changes_nothing_that_is_answered(
    requests: list[Request], num_seen: int, num_blocks: int, max_num_seqs: int, max_batched_tokens: int, reuse: bool
) -> None:
    """Whatever the parameters, the batches, the preemptions, and where the sequences were begun."""
    plain, num_plain_steps = answers(requests, num_seen=num_seen, speculation=None)
    guessed, num_steps = answers(
        requests,
        num_seen=num_seen,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        enable_prefix_reuse=reuse,
        speculation="prompt_lookup",
    )
    event("fewer steps" if num_steps < num_plain_steps else "not fewer steps")
    failed = {group for group, index in plain if index < 0}
    assert failed == {group for group, index in guessed if index < 0}
    for (group, index), given_to in plain.items():
        if group in failed and index >= 0:
            # How much the siblings of a failed sequence were given before depends on the batches.
            shorter, longer = sorted((given_to, guessed.get((group, index), [])), key=len)
            assert longer[: len(shorter)] == shorter
        else:
            assert guessed[group, index] == given_to


def test_text_that_repeats_takes_few_steps() -> None:
    request = Request([1, 2, 3], {"max_tokens": 50, "ignore_eos": True}, [[]], 0)
    (plain, num_plain_steps) = answers([request], num_seen=1, speculation=None)
    (guessed, num_steps) = answers([request], num_seen=1)
    assert guessed == plain
    assert num_plain_steps == 50
    assert num_steps < 25


def test_the_length_ends_in_the_middle_of_what_could_be_guessed() -> None:
    for max_tokens in range(20, 40):
        request = Request([1, 2, 3], {"max_tokens": max_tokens, "ignore_eos": True}, [[]], 0)
        given_to = answers([request], num_seen=1)[0][0, 0]
        assert len(given_to) == max_tokens + 1
        assert given_to[-1] is FinishReason.LENGTH
