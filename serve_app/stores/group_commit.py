"""Lets operations that wait at the same time share one transaction. Knows no SQL and no operation's meaning."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Operation = TypeVar("Operation")
Answer = TypeVar("Answer")


class GroupCommit(Generic[Operation, Answer]):
    """Hands operations to `commit` in the order in which they came, as many at once as are waiting.

    Nothing waits for others to come: an operation that comes alone is committed at once, and those that come
    meanwhile are the next group. Where a group fails, each of its operations is tried alone, so that one that cannot
    be carried out takes no other with it; `commit` must have changed nothing then. Errors of the types `fatal` fail the
    whole group at once: they would meet each operation again, or leave open whether the group was committed.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Operation]], Awaitable[Sequence[Answer]]],
        *,
        fatal: tuple[type[Exception], ...] = (),
        max_group: int = 256,
    ) -> None:
        self._commit = commit
        self._fatal = fatal
        self._max_group = max_group
        self._waiting: list[tuple[Operation, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, operation: Operation) -> Answer:
        """The answer to this operation, once it is committed. Raises what `commit` raises.

        Whoever is cancelled here before the operation was taken up withdraws it.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[: self._max_group], self._waiting[self._max_group :]
            group = [(operation, future) for operation, future in taken if not future.cancelled()]
            if group and not await self._try(group):
                for part in group:
                    await self._try([part])

    async def _try(self, group: Sequence[tuple[Operation, "asyncio.Future[Answer]"]]) -> bool:
        """Whether every operation has its answer or its failure; False where each is to be tried alone."""
        try:
            answers = await self._commit([operation for operation, _ in group])
        except Exception as error:
            if len(group) > 1 and not isinstance(error, self._fatal):
                return False
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return True
        for (_, future), answer in zip(group, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        return True
