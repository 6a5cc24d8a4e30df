"""A fake model that waits for the test before each step."""

import math
import threading

from torch import Tensor

from deployments.engine.scheduler import Batch
from tests.unit.engine.paged_fake import PagedFakeRunner


class GatedRunner(PagedFakeRunner):
    """Computes a step only when the test lets it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self._gate = threading.Condition()
        self._num_allowed = 0.0
        self.is_asked = threading.Event()  # for the first step

    def run(self, batch: Batch) -> Tensor:
        self.is_asked.set()
        with self._gate:
            self._gate.wait_for(lambda: self._num_allowed >= 1)
            self._num_allowed -= 1
        return super().run(batch)

    def let(self, num_steps: float = math.inf) -> None:
        with self._gate:
            self._num_allowed += num_steps
            self._gate.notify()
