"""How long what training leaves behind is kept: objects that no row names go. Knows no SQL and no HTTP."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass
from typing import Protocol

from deployments.checkpoints.garbage import Garbage
from serve_app.config import FineTuningConfig

PERIOD_S = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Roots:
    """What must be kept. manifests: of models and of checkpoints, with every blob that they name. blobs: of files."""

    manifests: Set[str]
    blobs: Set[str]


class RetentionStore(Protocol):
    async def is_due(self, chore: str, now: float, *, period_s: float) -> bool:
        """Whether nobody has done the chore for this time; true for one process only, which does it now."""

    async def forget_progress(self, ended_before: float) -> None:
        """The checkpoints and metrics of jobs that ended before this time; messages stay."""

    async def roots(self) -> Roots:
        """What models that are not deleted, checkpoints, files that are not deleted and open jobs need."""


class Objects(Protocol):
    """What is asked of the object store. Blocks; may be called in any thread."""

    def collect_garbage(self, *, manifests: Collection[str], blobs: Collection[str], now: float) -> Garbage:
        """Deletes what is old enough and not needed by these."""


class Retention:
    def __init__(
        self, store: RetentionStore, objects: Objects, config: FineTuningConfig, *, now: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._objects = objects
        self._config = config
        self._now = now

    async def collect(self) -> None:
        """Lets go of what nothing needs any more, if no other process has done so within PERIOD_S."""
        now = self._now()
        if not await self._store.is_due("collecting garbage", now, period_s=PERIOD_S):
            return
        await self._store.forget_progress(now - self._config.keep_checkpoints_s)
        roots = await self._store.roots()
        garbage = await asyncio.to_thread(
            self._objects.collect_garbage, manifests=roots.manifests, blobs=roots.blobs, now=now
        )
        for digest in garbage.missing:
            logger.error("the artifact %s is needed, and is not in the object store", digest)
        logger.info(
            "collected garbage: %d manifests and %d blobs of %d bytes, %d unfinished uploads",
            garbage.num_manifests,
            garbage.num_blobs,
            garbage.num_bytes,
            garbage.num_unfinished,
        )
