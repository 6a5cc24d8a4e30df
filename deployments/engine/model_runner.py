"""What runs a step's batch: the one seam, beside the sampler, behind which tensors live."""

import logging
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from deployments.config import EngineConfig
from deployments.engine.native.architecture import Unsupported
from deployments.engine.native.loading import load_native_runner
from deployments.engine.protocol import LoadedAdapter
from deployments.engine.sampling.draw import Draw
from deployments.engine.scheduler import Batch
from deployments.engine.sequence import PreparedAdapter, Sequence
from deployments.start_phases import StartPhases

logger = logging.getLogger(__name__)


class ModelRunner(Protocol):
    """chunked_prefill, prefix_reuse: whether a sequence's tokens may be computed in pieces, or found in the cache.

    `draw` is what draws tokens from its logits best.
    """

    chunked_prefill: bool
    prefix_reuse: bool
    num_blocks: int
    vocab_size: int
    device: torch.device
    draw: Draw

    def run(self, batch: Batch) -> Tensor:
        """Computes the batch; returns the logits [sum of num_logits, vocabulary], in the order of the batch."""

    def adapter_bytes(self, adapter: LoadedAdapter) -> int:
        """The `num_bytes` of what `prepare_adapter` will make of it. Quick. Raises InvalidAdapter where the shapes do
        not fit the model."""

    def prepare_adapter(self, adapter: LoadedAdapter) -> PreparedAdapter:
        """The adapter in the form that `run` finds in a sequence. May be called beside a step, from another thread.

        Raises InvalidAdapter where it does not fit the model.
        """

    def release(self, sequence: Sequence) -> None:
        """Forgets what it keeps for a sequence."""


def load_runner(path: Path, config: EngineConfig, home: Path, *, phases: StartPhases | None = None) -> ModelRunner:
    """Loads the model of a directory into the runner that computes it best.

    What the native kernels need is prepared under `home`, once. Raises OSError or ValueError, with a sentence, when the
    directory does not hold a model that can be run. `phases` learn what took how long.
    """
    phases = phases or StartPhases()
    try:
        return load_native_runner(path, config, home, phases=phases)
    except Unsupported as reason:
        logger.info("%s runs on torch, not on the native kernels: %s", path.name, reason)
    # Imported here: transformers takes seconds to import, and the native kernels do without it.
    with phases.within("imports"):
        from deployments.engine.transformers_runner import load_transformers_runner

    with phases.within("weights"):
        return load_transformers_runner(path, config)
