"""Runs work for a client only as long as the client waits for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from deployments.errors import DeadlineExceeded, GenerationFailed

T = TypeVar("T")


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T], *, deadline_s: float) -> T:
    """The result of `work`, which is cancelled, and has ended, when this returns or raises in any way.

    The body of the request must have been read: what is received next is that the client went away. Servers tell it
    through `receive` (uvicorn) or by cancelling this task as well (Ray Serve's proxy); both end the work.
    Raises ClientDisconnect, DeadlineExceeded, and what `work` raises.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({task, watcher}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.cancelled():
            # Cancelled from within, not by the caller: to the caller that is a failure like others.
            raise GenerationFailed("the work on this request was cancelled by the service")
        if task.done():
            return task.result()
        if watcher.done():
            raise ClientDisconnect()
        raise DeadlineExceeded(f"the answer did not come within {deadline_s:g} seconds")
    finally:
        await end_tasks(task, watcher)


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end_tasks(*tasks: "asyncio.Future[Any]") -> None:
    """Cancels the tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
