"""Runs a step's batch on a model of transformers, whatever its architecture.

`PagedRunner` computes all sequences of a batch in one ragged forward pass over a paged KV cache; it serves every
architecture whose attention transformers lets us replace. `PerSequenceRunner` serves the others (recurrent layers,
attention of their own): it lets each sequence keep the cache that the architecture brings along, one pass each.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine import attention
from deployments.engine.attention import PagedBatch, PagedCache, Segment
from deployments.engine.lora.torch_adapters import TorchAdapter, TorchAdapters
from deployments.engine.model_runner import ModelRunner
from deployments.engine.protocol import LoadedAdapter
from deployments.engine.sampling.draw import Draw, TorchDraw
from deployments.engine.scheduler import Batch, ScheduledSequence
from deployments.engine.sequence import Sequence

logger = logging.getLogger(__name__)


def load_transformers_runner(path: Path, config: EngineConfig) -> ModelRunner:
    """Loads the model of a directory and picks the runner that computes it correctly.

    Raises OSError or ValueError, with a sentence, when the directory does not hold a model that transformers knows.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, config.dtype) if config.dtype != "auto" else _default_dtype(path, device)
    # Code that a model directory brings along is never run.
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    model = model.to(device).eval()
    bytes_per_token = switch_to_paging(model)
    if bytes_per_token is not None:
        return PagedRunner(model, config, bytes_per_token)
    logger.info("%s computes its sequences one by one: its attention cannot be replaced", type(model).__name__)
    return PerSequenceRunner(model, config)


def _default_dtype(path: Path, device: torch.device) -> torch.dtype:
    """float32 on CPU, where it is the fastest that torch computes well; on a GPU what the weights were saved as."""
    if device.type == "cpu":
        return torch.float32
    saved = json.loads((path / "config.json").read_text())
    name = saved.get("dtype") or saved.get("torch_dtype") or "bfloat16"
    return torch.bfloat16 if name == "float32" else getattr(torch, name)


class PagedRunner:
    """All sequences of a batch in one forward pass, without padding."""

    chunked_prefill = True
    prefix_reuse = True

    def __init__(self, model: Any, config: EngineConfig, bytes_per_token: int) -> None:
        self._model = model
        self._block_size = config.block_size
        self.device = model.device
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.draw: Draw = TorchDraw(self.vocab_size, self.device)
        self.num_blocks = config.kv_cache_bytes // (bytes_per_token * config.block_size)
        self._cache = PagedCache(self.num_blocks * config.block_size)
        self._adapters = TorchAdapters(model)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        token_ids: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        write_slots: list[Tensor] = []
        segments: list[Segment] = []
        for item in batch.scheduled:
            slots = self._slots(item)
            segments.append(Segment(len(token_ids), len(token_ids) + item.num_tokens, slots))
            write_slots.append(slots[item.start :])
            token_ids += item.token_ids()
            positions += range(item.start, item.end)
            logit_rows += range(len(token_ids) - item.num_logits, len(token_ids))
        paged = PagedBatch(self._cache, torch.cat(write_slots), segments)
        with self._adapters.applied(batch.scheduled):
            return paged_forward(self._model, token_ids, positions, paged, logit_rows)

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        return self._adapters.num_bytes(adapter)

    def prepare_adapter(self, adapter: LoadedAdapter) -> TorchAdapter:
        return self._adapters.prepare(adapter)

    def release(self, sequence: Sequence) -> None:
        """Nothing to do: the blocks of the cache are the block manager's."""

    def _slots(self, item: ScheduledSequence) -> Tensor:
        """Where the keys of the sequence's first `end` tokens are."""
        blocks = torch.tensor(item.sequence.block_table, device=self.device)
        offsets = torch.arange(self._block_size, device=self.device)
        return (blocks[:, None] * self._block_size + offsets).flatten()[: item.end]


class PerSequenceRunner:
    """One forward pass for each sequence, with the cache that transformers makes for the architecture."""

    chunked_prefill = False
    prefix_reuse = False

    def __init__(self, model: Any, config: EngineConfig) -> None:
        self._model = model
        self.device = model.device
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.draw: Draw = TorchDraw(self.vocab_size, self.device)
        self.num_blocks = config.kv_cache_bytes // (_estimated_bytes_per_token(model) * config.block_size)
        self._caches: dict[int, Any] = {}
        self._adapters = TorchAdapters(model)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        logits = []
        for item in batch.scheduled:
            with self._adapters.applied([item]):
                output = self._model(
                    input_ids=torch.tensor([item.token_ids()], device=self.device),
                    use_cache=True,
                    **self._caches.get(item.sequence.key, {}),
                )
            self._caches[item.sequence.key] = _cache_arguments(output)
            logits.append(output.logits[0, item.num_tokens - item.num_logits :])
        return torch.cat(logits)

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        return self._adapters.num_bytes(adapter)

    def prepare_adapter(self, adapter: LoadedAdapter) -> TorchAdapter:
        return self._adapters.prepare(adapter)

    def release(self, sequence: Sequence) -> None:
        self._caches.pop(sequence.key, None)


def paged_forward(
    model: Any, token_ids: list[int], positions: list[int], paged: PagedBatch, logit_rows: list[int]
) -> Tensor:
    """One forward pass over the tokens of all sequences, end to end; the logits of the given rows."""
    logits: Tensor = model(
        input_ids=torch.tensor([token_ids], device=model.device),
        position_ids=torch.tensor([positions], device=model.device),
        use_cache=False,
        logits_to_keep=torch.tensor(logit_rows, device=model.device, dtype=torch.long),
        paged=paged,
    ).logits
    return logits[0]


@torch.inference_mode()
def switch_to_paging(model: Any) -> int | None:
    """Makes the model use the paged attention if that gives its own results; returns its cache's bytes for each token.

    An architecture may accept another attention function and still keep state elsewhere, or look at its neighbours in
    the batch. So two sequences are computed together, in two steps, and compared with the model's own answers.
    Returns None, and leaves the model as it was, where they differ or the model refuses.
    """
    if not model._supports_attention_backend:
        return None
    vocab_size = model.get_output_embeddings().weight.shape[0]
    first = [(7 * i + 3) % vocab_size for i in range(6)]
    second = [(11 * i + 5) % vocab_size for i in range(5)]
    expected = torch.stack([model(torch.tensor([ids], device=model.device)).logits[0, -1] for ids in (first, second)])
    own_attention = model.config._attn_implementation
    slots = torch.arange(len(first) + len(second), device=model.device)
    of_first, of_second = slots[: len(first)], slots[len(first) :]
    cache = PagedCache(len(slots))
    try:
        model.set_attn_implementation(attention.NAME)
        prompts = [Segment(0, 5, of_first[:5]), Segment(5, 9, of_second[:4])]
        paged = PagedBatch(cache, torch.cat([of_first[:5], of_second[:4]]), prompts)
        paged_forward(model, first[:5] + second[:4], [0, 1, 2, 3, 4, 0, 1, 2, 3], paged, [4, 8])
        paged = PagedBatch(
            cache, torch.stack([of_first[5], of_second[4]]), [Segment(0, 1, of_first), Segment(1, 2, of_second)]
        )
        answered = paged_forward(model, [first[5], second[4]], [5, 4], paged, [0, 1])
    except Exception as error:
        logger.info("%s does not take the paged attention: %s", type(model).__name__, error)
        answered = torch.full_like(expected, torch.nan)
    # Models compute some things in float32 whatever their own precision is.
    precision = max(torch.finfo(expected.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = 16 * precision**0.75 * expected.abs().max()
    if (answered - expected).abs().max() <= tolerance and cache.layers:
        return cache.bytes_per_token
    model.set_attn_implementation(own_attention)
    return None


def _estimated_bytes_per_token(model: Any) -> int:
    """As if every layer kept keys and values of full width; recurrent layers keep less."""
    config = model.config.get_text_config()
    return int(2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize)


def _cache_arguments(output: Any) -> dict[str, Any]:
    """The cache of a forward pass, under the name by which the next one takes it."""
    for name in ("past_key_values", "cache_params", "state"):
        if getattr(output, name, None) is not None:
            return {name: getattr(output, name)}
    raise ValueError("the model returns no cache to continue from")
