"""The engine's step with a fake model: batching, paging, reuse, preemption and failures, without a thread."""

from collections import defaultdict
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.config import EngineConfig
from deployments.engine.core import EngineCore
from deployments.engine.protocol import TokenDelta
from deployments.engine.sampler import Sampler
from deployments.engine.sequence import Sequence
from deployments.types import FinishReason, SamplingParams
from tests.unit.engine.paged_fake import PagedFakeRunner, next_token

VOCAB_SIZE = 50
KEYS = count()


def make_core(
    *, num_blocks: int = 64, block_size: int = 4, eos: frozenset[int] = frozenset(), **settings: int | bool
) -> tuple[EngineCore, PagedFakeRunner]:
    runner = PagedFakeRunner(num_blocks, block_size, VOCAB_SIZE)
    config = EngineConfig(block_size=block_size, **settings)
    return EngineCore(runner, Sampler(VOCAB_SIZE, eos, runner.device), config), runner


def make_sequences(
    group: int,
    prompt: list[int],
    *,
    max_tokens: int = 8,
    num_sequences: int = 1,
    eos: frozenset[int] = frozenset(),
    context_length: int = 1000,
    cache_salt: str = "",
    **sampling: int | float | tuple[int, ...],
) -> list[Sequence]:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, **sampling)
    return [
        Sequence(
            key=next(KEYS),
            group=group,
            index=index,
            prompt_token_ids=tuple(prompt),
            params=params,
            eos_token_ids=eos,
            context_length=context_length,
            cache_salt=cache_salt,
            wants_prompt_logprobs=index == 0 and params.prompt_logprobs is not None,
        )
        for index in range(num_sequences)
    ]


def expected_tokens(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, VOCAB_SIZE))
    return tokens[len(prompt) :]


def run_to_end(core: EngineCore) -> dict[tuple[int, int], list[TokenDelta]]:
    deltas = defaultdict(list)
    for _ in range(10_000):
        if not core.has_work:
            return deltas
        for group, new in core.step().deltas.items():
            for delta in new:
                deltas[group, delta.index].append(delta)
    raise AssertionError("the engine did not come to an end")


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def test_continues_a_prompt_to_max_tokens() -> None:
    core, _ = make_core()
    core.add(0, make_sequences(0, [1, 2, 3], max_tokens=9))
    deltas = run_to_end(core)[0, 0]
    assert tokens_of(deltas) == expected_tokens([1, 2, 3], 9)
    assert [delta.finish_reason for delta in deltas] == [None] * 8 + [FinishReason.LENGTH]


def test_joins_and_leaves_between_steps() -> None:
    core, runner = make_core()
    core.add(0, make_sequences(0, [1], max_tokens=6))
    core.step()
    core.add(1, make_sequences(1, [2], max_tokens=2))
    deltas = run_to_end(core)
    assert tokens_of(deltas[1, 0]) == expected_tokens([2], 2)
    assert [len(batch.scheduled) for batch in runner.batches] == [1, 2, 2, 1, 1, 1]


def test_stops_at_the_end_token_unless_told_to_ignore_it() -> None:
    first = expected_tokens([5], 1)[0]
    eos = frozenset({first})
    core, _ = make_core(eos=eos)
    core.add(0, make_sequences(0, [5], eos=eos))
    core.add(1, make_sequences(1, [5], eos=eos, max_tokens=3, ignore_eos=True))
    deltas = run_to_end(core)
    assert tokens_of(deltas[0, 0]) == [first]
    assert deltas[0, 0][-1].finish_reason is FinishReason.STOP
    assert tokens_of(deltas[1, 0]) == expected_tokens([5], 3)


def test_reports_the_stop_token_that_ended_it() -> None:
    second = expected_tokens([5], 2)[1]
    core, _ = make_core()
    core.add(0, make_sequences(0, [5], stop_token_ids=(second,)))
    last = run_to_end(core)[0, 0][-1]
    assert (last.finish_reason, last.stop_token_id) == (FinishReason.STOP, second)


def test_context_length_bounds_the_output() -> None:
    core, _ = make_core()
    core.add(0, make_sequences(0, [1, 2, 3], max_tokens=50, context_length=7))
    deltas = run_to_end(core)[0, 0]
    assert len(tokens_of(deltas)) == 4
    assert deltas[-1].finish_reason is FinishReason.LENGTH


def test_long_prompt_is_computed_in_pieces_while_others_go_on() -> None:
    core, runner = make_core(max_batched_tokens=8)
    core.add(0, make_sequences(0, [1], max_tokens=20))
    first = core.step().deltas[0]
    core.add(1, make_sequences(1, list(range(30)), max_tokens=2))
    deltas = run_to_end(core)
    assert tokens_of(deltas[1, 0]) == expected_tokens(list(range(30)), 2)
    assert tokens_of(first + deltas[0, 0]) == expected_tokens([1], 20)
    with_prompt = [batch for batch in runner.batches if any(item.num_tokens > 1 for item in batch.scheduled)]
    assert all(batch.num_tokens <= 8 for batch in runner.batches)
    assert all(len(batch.scheduled) == 2 for batch in with_prompt)


def test_siblings_share_the_computed_prompt() -> None:
    core, runner = make_core()
    prompt = list(range(12))
    core.add(0, make_sequences(0, prompt, num_sequences=3, max_tokens=2))
    deltas = run_to_end(core)
    assert sum(batch.num_tokens for batch in runner.batches) == 12 + 1 + 2 * (4 + 1)
    assert all(tokens_of(deltas[0, index]) == expected_tokens(prompt, 2) for index in range(3))


def test_prefix_is_reused_within_an_account_only() -> None:
    core, _ = make_core()
    prompt = list(range(12))
    cached = []
    for group, salt in enumerate(["alice", "alice", "bob"]):
        core.add(group, make_sequences(group, prompt, cache_salt=salt))
        deltas = run_to_end(core)[group, 0]
        assert tokens_of(deltas) == expected_tokens(prompt, 8)
        cached.append(deltas[0].num_cached_tokens)
    assert cached == [0, 8, 0]


def test_reuse_can_be_switched_off() -> None:
    core, _ = make_core(enable_prefix_reuse=False)
    for group in range(2):
        core.add(group, make_sequences(group, list(range(12))))
        assert run_to_end(core)[group, 0][0].num_cached_tokens == 0


def test_removed_group_leaves_nothing_behind() -> None:
    core, _ = make_core()
    core.add(0, make_sequences(0, list(range(9)), num_sequences=2, max_tokens=100))
    core.add(1, make_sequences(1, [3], max_tokens=3))
    core.step()
    core.remove(0)
    deltas = run_to_end(core)
    assert set(deltas) == {(1, 0)}
    stats = core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


def test_one_sequence_of_a_group_can_be_ended() -> None:
    core, _ = make_core()
    core.add(0, make_sequences(0, [4, 2], num_sequences=2, max_tokens=5))
    core.step()
    core.remove(0, [0])
    assert set(run_to_end(core)) == {(0, 1)}


def test_failed_step_fails_its_batch_and_nothing_else() -> None:
    core, runner = make_core(max_num_seqs=1)
    core.add(0, make_sequences(0, [1]))
    core.add(1, make_sequences(1, [2], max_tokens=2))
    runner.fail_next = True
    assert set(core.step().failed) == {0}
    assert tokens_of(run_to_end(core)[1, 0]) == expected_tokens([2], 2)
    assert core.stats().num_free_blocks == core.stats().num_blocks


def test_check_computes_a_token_of_its_own_and_leaves_nothing_behind() -> None:
    core, runner = make_core()
    core.add(0, make_sequences(0, list(range(9)), max_tokens=5))
    core.step()
    before = core.stats()
    core.check()
    assert core.stats() == before
    assert [batch.num_tokens for batch in runner.batches] == [9, 1]
    assert tokens_of(run_to_end(core)[0, 0]) == expected_tokens(list(range(9)), 5)[1:]


def test_check_after_a_step_that_raised_tells_a_broken_model_from_a_request_it_cannot_compute() -> None:
    core, runner = make_core()
    runner.fail_for = 7
    core.add(0, make_sequences(0, [7]))
    assert core.step().has_raised
    core.check()
    runner.error = RuntimeError("the device is broken")
    core.add(1, make_sequences(1, [1]))
    assert core.step().has_raised
    with pytest.raises(RuntimeError, match="broken"):
        core.check()
    assert core.stats().num_free_blocks == core.stats().num_blocks


def test_check_takes_no_block_from_sequences_that_hold_them_all() -> None:
    core, runner = make_core(num_blocks=2)
    core.add(0, make_sequences(0, list(range(6))))
    assert not core.step().has_raised
    core.check()
    assert len(runner.batches) == 1


def test_nan_logits_fail_their_own_request_only() -> None:
    core, runner = make_core()
    runner.answer_nan_for = {0}
    core.add(0, make_sequences(0, [1], num_sequences=2))
    core.add(1, make_sequences(1, [2], max_tokens=2))
    result = core.step()
    assert set(result.failed) == {0}
    assert set(result.deltas) == {1}
    assert set(run_to_end(core)) == {(1, 0)}


@pytest.mark.parametrize("max_batched_tokens", [3, 100])
def test_prompt_logprobs_cover_the_prompt_once(max_batched_tokens: int) -> None:
    core, _ = make_core(max_batched_tokens=max_batched_tokens)
    prompt = [1, *expected_tokens([1], 6), 7, 8]
    core.add(0, make_sequences(0, prompt, prompt_logprobs=1, max_tokens=3))
    deltas = run_to_end(core)[0, 0]
    given_once = [delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None]
    assert len(given_once) == 1
    assert given_once[0][0] is None
    assert [position.token_id for position in given_once[0][1:]] == prompt[1:]
    likeliest = [position.logprob > -1e-3 for position in given_once[0][1:]]
    assert likeliest == [True] * 6 + [False, next_token(prompt[:8], VOCAB_SIZE) == 8]


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=14),
        st.integers(1, 9),
        st.integers(1, 3),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=7,
)


@settings(deadline=None, max_examples=150)
@given(
    requests=REQUESTS,
    num_blocks=st.integers(8, 20),
    max_num_seqs=st.integers(1, 6),
    max_batched_tokens=st.integers(1, 24),
    reuse=st.booleans(),
)
def test_any_mix_gives_each_sequence_its_own_tokens(
    requests: list[tuple[list[int], int, int, int]],
    num_blocks: int,
    max_num_seqs: int,
    max_batched_tokens: int,
    reuse: bool,
) -> None:
    """Whatever the batches, the cache's size and the preemptions that follow from it."""
    core, runner = make_core(
        num_blocks=num_blocks,
        block_size=3,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        enable_prefix_reuse=reuse,
    )
    deltas = defaultdict(list)
    arrivals = sorted(enumerate(requests), key=lambda request: request[1][3])
    for step in range(2000):
        while arrivals and (arrivals[0][1][3] <= step or not core.has_work):
            group, (prompt, max_tokens, num_sequences, _) = arrivals.pop(0)
            core.add(group, make_sequences(group, prompt, max_tokens=max_tokens, num_sequences=num_sequences))
        if not core.has_work:
            break
        for group, new in core.step().deltas.items():
            for delta in new:
                deltas[group, delta.index].append(delta)
        assert runner.batches[-1].num_tokens <= max_batched_tokens
        assert core.stats().num_running <= max_num_seqs
    assert not core.has_work
    for group, (prompt, max_tokens, num_sequences, _) in enumerate(requests):
        for index in range(num_sequences):
            assert tokens_of(deltas[group, index]) == expected_tokens(prompt, max_tokens)
    assert core.stats().num_free_blocks == num_blocks
