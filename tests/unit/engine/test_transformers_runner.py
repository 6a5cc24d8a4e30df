"""Both runners against transformers' own forward pass, over several architectures, in pieces and in batches."""

import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.block_manager import BlockManager
from deployments.engine.core import EngineCore
from deployments.engine.model_runner import ModelRunner
from deployments.engine.sampler import Sampler
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.engine.transformers_runner import PagedRunner, PerSequenceRunner, load_transformers_runner
from deployments.types import SamplingParams
from tests.factories import make_tiny_model

BLOCK_SIZE = 4
KEYS = count()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The runner and the plain model of an architecture."""
    loaded: dict[str, tuple[ModelRunner, Any]] = {}

    def load_once(architecture: str) -> tuple[ModelRunner, Any]:
        if architecture not in loaded:
            directory = tmp_path_factory.mktemp(architecture)
            if architecture in PER_SEQUENCE:
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(PER_SEQUENCE[architecture]).double()
                model.save_pretrained(directory)
            else:
                make_tiny_model(directory, architecture=architecture, dtype="float64")
            config = EngineConfig(dtype="float64", block_size=BLOCK_SIZE, kv_cache_bytes=4_000_000)
            plain = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
            loaded[architecture] = load_transformers_runner(directory, config), plain.eval()
        return loaded[architecture]

    return load_once


PAGED = ["llama", "gpt2", "qwen2", "mistral", "gemma2"]
PER_SEQUENCE = {
    "bloom": transformers.BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4),
    "mamba": transformers.MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, state_size=8),
}


def make_sequence(token_ids: list[int], *, all_logits: bool = False) -> Sequence:
    return Sequence(
        key=next(KEYS),
        group=0,
        index=0,
        prompt_token_ids=tuple(token_ids),
        params=SamplingParams(),
        eos_token_ids=frozenset(),
        context_length=512,
        wants_prompt_logprobs=all_logits,
    )


def plain_logits(model: Any, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]


def random_token_ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(384) for _ in range(length)]


@pytest.mark.parametrize("architecture", PAGED)
def test_replaceable_attention_is_paged(load: Any, architecture: str) -> None:
    assert isinstance(load(architecture)[0], PagedRunner)


@pytest.mark.parametrize("architecture", PER_SEQUENCE)
def test_other_architectures_run_sequence_by_sequence(load: Any, architecture: str) -> None:
    runner, model = load(architecture)
    assert isinstance(runner, PerSequenceRunner)
    assert runner.num_blocks > 0
    first, second = make_sequence([5, 6, 7]), make_sequence([9, 8])
    prompts = runner.run(Batch((ScheduledSequence(first, 0, 3), ScheduledSequence(second, 0, 2))))
    torch.testing.assert_close(prompts[0], plain_logits(model, [5, 6, 7])[-1])
    torch.testing.assert_close(prompts[1], plain_logits(model, [9, 8])[-1])
    first.output_token_ids.append(11)
    second.output_token_ids.append(12)
    more = runner.run(Batch((ScheduledSequence(second, 2, 3), ScheduledSequence(first, 3, 4))))
    torch.testing.assert_close(more[1], plain_logits(model, [5, 6, 7, 11])[-1])
    torch.testing.assert_close(more[0], plain_logits(model, [9, 8, 12])[-1])
    runner.release(first)
    again = runner.run(Batch((ScheduledSequence(first, 0, 4),)))
    torch.testing.assert_close(again[0], plain_logits(model, [5, 6, 7, 11])[-1])


@pytest.mark.parametrize("architecture", PAGED)
def test_paged_logits_are_those_of_a_plain_pass_however_cut_and_batched(load: Any, architecture: str) -> None:
    """Sequences longer than the sliding windows, in pieces of random sizes, side by side in random company."""
    runner, model = load(architecture)
    rng = random.Random(3)
    blocks = BlockManager(runner.num_blocks, BLOCK_SIZE, enable_prefix_reuse=False)
    sequences = [make_sequence(random_token_ids(rng, length), all_logits=True) for length in (1, 7, 40, 61)]
    found: dict[int, list[Tensor]] = {sequence.key: [] for sequence in sequences}
    while any(sequence.num_computed < sequence.num_tokens for sequence in sequences):
        scheduled = []
        for sequence in rng.sample(sequences, k=rng.randint(1, len(sequences))):
            left = sequence.num_tokens - sequence.num_computed
            if left:
                end = sequence.num_computed + rng.randint(1, min(left, 17))
                assert blocks.extend(sequence, end)
                scheduled.append(ScheduledSequence(sequence, sequence.num_computed, end))
        if scheduled:
            logits = runner.run(Batch(tuple(scheduled)))
            for item, rows in zip(scheduled, logits.split([item.num_logits for item in scheduled]), strict=True):
                found[item.sequence.key].append(rows)
                blocks.commit(item.sequence, item.end)
    for sequence in sequences:
        expected = plain_logits(model, list(sequence.prompt_token_ids))
        torch.testing.assert_close(torch.cat(found[sequence.key]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [*PAGED, *PER_SEQUENCE])
def test_guessing_ahead_gives_the_same_tokens(load: Any, architecture: str) -> None:
    """In fewer steps on a paged cache; a runner that cannot take a guess back gets none."""
    runner, _ = load(architecture)

    def generate(speculation: str | None) -> tuple[list[list[int]], int]:
        config = EngineConfig(block_size=BLOCK_SIZE, speculation=speculation)
        core = EngineCore(runner, Sampler(384, frozenset(), runner.device), config)
        sequences = [make_sequence(random_token_ids(random.Random(length), length)) for length in (5, 30)]
        for group, sequence in enumerate(sequences):
            sequence.group = group
            sequence.params = SamplingParams(max_tokens=60, temperature=0.0)
            core.add(group, [sequence])
        num_steps = 0
        while core.has_work:
            assert not core.step().failed
            num_steps += 1
        return [sequence.output_token_ids for sequence in sequences], num_steps

    plain, num_plain_steps = generate(None)
    guessed, num_steps = generate("prompt_lookup")
    assert guessed == plain
    assert num_plain_steps == 60
    assert num_steps == 60 if architecture in PER_SEQUENCE else num_steps <= 60


@pytest.mark.parametrize("architecture", [*PAGED, *PER_SEQUENCE])
def test_engine_can_be_checked_between_the_steps_of_a_sequence(load: Any, architecture: str) -> None:
    runner, _ = load(architecture)

    def generate(*, is_checked: bool) -> list[int]:
        core = EngineCore(runner, Sampler(384, frozenset(), runner.device), EngineConfig(block_size=BLOCK_SIZE))
        sequence = make_sequence([5, 6, 7])
        sequence.params = SamplingParams(max_tokens=10, temperature=0.0)
        core.add(0, [sequence])
        while core.has_work:
            assert not core.step().failed
            if is_checked:
                core.check()
        return sequence.output_token_ids

    assert generate(is_checked=True) == generate(is_checked=False)


def test_cache_stays_within_its_bytes(load: Any) -> None:
    runner, model = load("llama")
    config = model.config
    bytes_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 8
    assert runner.num_blocks == 4_000_000 // (bytes_per_token * BLOCK_SIZE)


def test_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ValueError, match="no-such-model"):
        load_transformers_runner(tmp_path, EngineConfig())
