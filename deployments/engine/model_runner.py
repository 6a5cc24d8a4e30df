"""What runs a step's batch: the one seam, beside the sampler, behind which tensors live."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.scheduler import Batch
from deployments.engine.sequence import Sequence


class ModelRunner(Protocol):
    """chunked_prefill, prefix_reuse: whether a sequence's tokens may be computed in pieces, or found in the cache."""

    chunked_prefill: bool
    prefix_reuse: bool
    num_blocks: int
    vocab_size: int
    device: torch.device

    def run(self, batch: Batch) -> Tensor:
        """Computes the batch; returns the logits [sum of num_logits, vocabulary], in the order of the batch."""

    def release(self, sequence: Sequence) -> None:
        """Forgets what it keeps for a sequence."""


def load_runner(path: Path, config: EngineConfig) -> ModelRunner:
    """Loads the model of a directory into the runner that computes it best.

    Raises OSError or ValueError, with a sentence, when the directory does not hold a model that can be run.
    """
    # Imported here: transformers takes seconds to import, and not every runner needs it.
    from deployments.engine.transformers_runner import load_transformers_runner

    return load_transformers_runner(path, config)
