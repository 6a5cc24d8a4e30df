"""Adapters on transformers' models against peft: several in a batch, cut anywhere, and nothing to who has none."""

import random
from itertools import count
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.block_manager import BlockManager
from deployments.engine.lora.torch_adapters import TorchAdapter
from deployments.engine.model_runner import ModelRunner
from deployments.engine.protocol import LoadedAdapter, LowRankPair
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import PreparedAdapter, Sequence
from deployments.engine.transformers_runner import PagedRunner, PerSequenceRunner, load_transformers_runner
from deployments.errors import InvalidAdapter
from deployments.types import SamplingParams
from tests.factories import make_tiny_model
from tests.unit.engine.adapters import PEFT_WARNING, adapter_tensors, config_of, make_adapter, write_adapter

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

BLOCK_SIZE = 4
KEYS = count()
# By architecture: paths and (out, in) of linears; gpt2 has convolutions for linears, bloom is not paged.
LINEARS: dict[str, dict[str, tuple[int, int]]] = {
    architecture: {
        f"model.layers.{layer}.{path}": shape
        for layer in range(2)
        for path, shape in {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64),
            "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (128, 64),
            "mlp.up_proj": (128, 64),
            "mlp.down_proj": (64, 128),
        }.items()
    }
    for architecture in ("llama", "qwen2")
}
LINEARS["gpt2"] = {
    f"transformer.h.{layer}.{path}": shape
    for layer in range(2)
    for path, shape in {"attn.c_attn": (192, 64), "mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}.items()
}
LINEARS["bloom"] = {
    f"transformer.h.{layer}.{path}": shape
    for layer in range(2)
    for path, shape in {"self_attention.query_key_value": (96, 32), "mlp.dense_h_to_4h": (128, 32)}.items()
}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The runner of an architecture, and a fresh plain model of the same weights."""
    directories: dict[str, Path] = {}
    runners: dict[str, ModelRunner] = {}

    def load_once(architecture: str) -> tuple[ModelRunner, Any]:
        if architecture not in runners:
            directory = directories[architecture] = tmp_path_factory.mktemp(architecture)
            if architecture == "bloom":
                torch.manual_seed(0)
                config = transformers.BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4)
                transformers.AutoModelForCausalLM.from_config(config).double().save_pretrained(directory)
            else:
                make_tiny_model(directory, architecture=architecture, dtype="float64")
            config = EngineConfig(dtype="float64", block_size=BLOCK_SIZE, kv_cache_bytes=4_000_000)
            runners[architecture] = load_transformers_runner(directory, config)
        plain = transformers.AutoModelForCausalLM.from_pretrained(directories[architecture], dtype=torch.float64)
        return runners[architecture], plain.eval()

    return load_once


def make_adapters(architecture: str) -> list[LoadedAdapter]:
    """Of different ranks, on all linears and on some."""
    linears = LINEARS[architecture]
    some = dict(list(linears.items())[::2])
    return [
        make_adapter(linears, rank=4, seed=1),
        make_adapter(some, rank=16, seed=2),
        make_adapter(dict(list(linears.items())[:1]), rank=1, seed=3, size=2.0),
    ]


def peft_logits(plain: Any, adapter: LoadedAdapter | None, directory: Path, token_ids: list[int]) -> Tensor:
    if adapter is not None:
        # "conv" layers keep their weights the other way round.
        config = {**config_of(adapter), "fan_in_fan_out": plain.config.model_type == "gpt2"}
        plain = peft.PeftModel.from_pretrained(plain, write_adapter(directory, adapter_tensors(adapter), config))
        plain = plain.double().eval()
    with torch.inference_mode():
        logits: Tensor = plain(torch.tensor([token_ids])).logits[0]
    return logits


def make_sequence(token_ids: list[int], adapter: PreparedAdapter | None = None) -> Sequence:
    return Sequence(
        key=next(KEYS),
        group=0,
        index=0,
        prompt_token_ids=tuple(token_ids),
        params=SamplingParams(),
        eos_token_ids=frozenset(),
        context_length=512,
        wants_prompt_logprobs=True,
        adapter=adapter,
    )


def run_alone(runner: ModelRunner, token_ids: list[int], adapter: PreparedAdapter | None) -> Tensor:
    sequence = make_sequence(token_ids, adapter)
    blocks = BlockManager(runner.num_blocks, BLOCK_SIZE)
    assert blocks.extend(sequence, len(token_ids))
    logits = runner.run(Batch((ScheduledSequence(sequence, 0, len(token_ids)),)))
    runner.release(sequence)
    return logits


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_a_mixed_batch_in_pieces_is_what_peft_computes_for_each(load: Any, architecture: str, tmp_path: Path) -> None:
    runner, _ = load(architecture)
    assert isinstance(runner, PagedRunner)
    rng = random.Random(3)
    loaded = make_adapters(architecture)
    prepared = [None, *(runner.prepare_adapter(adapter) for adapter in loaded)]
    blocks = BlockManager(runner.num_blocks, BLOCK_SIZE, enable_prefix_reuse=False)
    token_ids = [[rng.randrange(384) for _ in range(length)] for length in (9, 30, 23, 17, 30)]
    which = [0, 1, 2, 3, 1]
    sequences = [make_sequence(ids, prepared[slot]) for ids, slot in zip(token_ids, which, strict=True)]
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
    for sequence, ids, slot in zip(sequences, token_ids, which, strict=True):
        expected = peft_logits(load(architecture)[1], [None, *loaded][slot], tmp_path / f"{sequence.key}", ids)
        torch.testing.assert_close(torch.cat(found[sequence.key]), expected, rtol=1e-5, atol=1e-5)


def test_models_that_run_sequence_by_sequence_take_adapters_too(load: Any, tmp_path: Path) -> None:
    runner, plain = load("bloom")
    assert isinstance(runner, PerSequenceRunner)
    adapter = make_adapters("bloom")[0]
    first, second = make_sequence([5, 6, 7], runner.prepare_adapter(adapter)), make_sequence([5, 6, 7])

    logits = runner.run(Batch((ScheduledSequence(first, 0, 3), ScheduledSequence(second, 0, 3))))

    torch.testing.assert_close(logits[3:], peft_logits(plain, None, tmp_path, [5, 6, 7]))
    torch.testing.assert_close(logits[:3], peft_logits(load("bloom")[1], adapter, tmp_path, [5, 6, 7]))
    assert not torch.allclose(logits[:3], logits[3:])


def test_rows_without_adapter_get_the_same_bits_as_without_adapters_in_the_batch(load: Any) -> None:
    runner, _ = load("llama")
    adapters = [runner.prepare_adapter(adapter) for adapter in make_adapters("llama")]
    token_ids = [[7 * row + column for column in range(12)] for row in range(4)]

    def logits(of_each: list[TorchAdapter | None]) -> list[Tensor]:
        blocks = BlockManager(runner.num_blocks, BLOCK_SIZE, enable_prefix_reuse=False)
        scheduled = []
        for ids, adapter in zip(token_ids, of_each, strict=True):
            sequence = make_sequence(ids, adapter)
            assert blocks.extend(sequence, 12)
            scheduled.append(ScheduledSequence(sequence, 0, 12))
        return list(runner.run(Batch(tuple(scheduled))).split(12))

    without, mixed = logits([None] * 4), logits([adapters[0], None, adapters[1], None])

    assert torch.equal(mixed[1], without[1])
    assert torch.equal(mixed[3], without[3])
    assert not torch.allclose(mixed[0], without[0])
    assert all(torch.equal(*pair) for pair in zip(logits([None] * 4), without, strict=True))


def test_numbers_beyond_all_bounds_reach_no_other_row(load: Any) -> None:
    runner, _ = load("llama")
    good, bad = make_adapters("llama")[:2]
    pairs = {path: LowRankPair(pair.a * 1e37, pair.b * 1e37) for path, pair in bad.pairs.items()}
    huge = runner.prepare_adapter(LoadedAdapter(bad.ref, pairs))
    huge = TorchAdapter(huge.ref, {path: (a * 1e270, b) for path, (a, b) in huge.pairs.items()})
    blocks = BlockManager(runner.num_blocks, BLOCK_SIZE, enable_prefix_reuse=False)
    sequences = [make_sequence([3, 4, 5, 6], adapter) for adapter in (huge, None, runner.prepare_adapter(good))]
    assert all(blocks.extend(sequence, 4) for sequence in sequences)

    logits = runner.run(Batch(tuple(ScheduledSequence(sequence, 0, 4) for sequence in sequences))).split(4)

    assert not logits[0].isfinite().all()
    torch.testing.assert_close(logits[1], run_alone(runner, [3, 4, 5, 6], None))
    torch.testing.assert_close(logits[2], run_alone(runner, [3, 4, 5, 6], sequences[2].adapter))


def test_adapter_that_does_not_fit_is_refused(load: Any) -> None:
    runner, _ = load("llama")

    for refuse in (runner.prepare_adapter, runner.adapter_bytes):
        with pytest.raises(InvalidAdapter, match="no linear lm_head"):
            refuse(make_adapter({"lm_head": (384, 64)}))
        with pytest.raises(InvalidAdapter, match="q_proj"):
            refuse(make_adapter({"model.layers.0.self_attn.q_proj": (64, 32)}))


def test_memory_is_that_of_the_tensors(load: Any) -> None:
    runner, _ = load("llama")
    adapter = make_adapter({"model.layers.0.self_attn.k_proj": (32, 64)}, rank=4)

    assert runner.adapter_bytes(adapter) == runner.prepare_adapter(adapter).num_bytes == 4 * (32 + 64) * 8


def test_numbers_that_the_model_cannot_hold_are_refused(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, architecture="llama", dtype="float16")
    runner = load_transformers_runner(tmp_path, EngineConfig(dtype="float16", kv_cache_bytes=4_000_000))
    path = "model.layers.0.mlp.up_proj"
    pair = make_adapter({path: LINEARS["llama"][path]}).pairs[path]

    with pytest.raises(InvalidAdapter, match=r"too large for torch\.float16"):
        runner.prepare_adapter(LoadedAdapter(make_adapter({}).ref, {path: LowRankPair(pair.a, pair.b * 0 + 70_000)}))
