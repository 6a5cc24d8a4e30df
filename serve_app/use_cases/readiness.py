"""Whether the service can answer, kept for whoever asks: load balancers, and anybody else, for it needs no key.

Knows neither Ray nor HTTP: what is asked, and how long it takes to answer, is somebody else's.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_KEPT_S = 1.0
_WAIT_S = 2.0

logger = logging.getLogger(__name__)


class Readiness:
    """One answer for a whole process. Where none comes in time, or the question fails, the last one stays: that nobody
    can be asked says nothing of those who answer requests. Before the first answer, the service is not ready.

    ask: blocks until it knows, perhaps for as long as an outage lasts. It is called in a thread of its own, once at a
    time, and not before `kept_s` seconds after its last end. wait_s: the longest that anybody waits for its answer.
    """

    def __init__(
        self,
        ask: Callable[[], bool],
        *,
        kept_s: float = _KEPT_S,
        wait_s: float = _WAIT_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._kept_s = kept_s
        self._wait_s = wait_s
        self._now = now
        # Not the event loop's own threads: a question that hangs must take none from those who need them.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="readiness")
        self._asking: asyncio.Task[None] | None = None
        self._began_at = self._ended_at = -math.inf
        self._is_ready = False

    async def is_ready(self) -> bool:
        """The answer, at most `kept_s` old unless it is the last that there was."""
        now = self._now()
        if self._asking is None and now - self._ended_at >= self._kept_s:
            self._began_at = now
            self._asking = asyncio.create_task(self._find_out())
        left_s = self._began_at + self._wait_s - now
        if self._asking is not None and left_s > 0:
            await asyncio.wait({self._asking}, timeout=left_s)
        return self._is_ready

    def close(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            self._asking.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _find_out(self) -> None:
        try:
            self._is_ready = await asyncio.get_running_loop().run_in_executor(self._executor, self._ask)
        except Exception as error:
            logger.warning("whether the service is ready could not be asked: %s", type(error).__name__)
        finally:
            self._ended_at = self._now()
            self._asking = None
