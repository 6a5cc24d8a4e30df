"""How a generation ends: with what came first."""

import pytest

from deployments.engine.generation import QueuedGeneration
from deployments.engine.protocol import TokenDelta
from deployments.errors import EngineDead, GenerationFailed
from deployments.types import FinishReason


def make_generation() -> QueuedGeneration:
    return QueuedGeneration([0], wants_pieces=True, stop=lambda _: None, forget=lambda: None)


async def test_the_first_error_is_the_one_that_is_told() -> None:
    generation = make_generation()
    generation.fail(GenerationFailed("the step has failed"))
    generation.fail(EngineDead("and then the engine has ended"))
    with pytest.raises(GenerationFailed):
        [deltas async for deltas in generation]


async def test_what_is_complete_does_not_fail_any_more() -> None:
    generation = make_generation()
    last = TokenDelta(0, (1,), finish_reason=FinishReason.LENGTH)
    generation.put([last])
    generation.fail(EngineDead("the engine has ended"))
    assert [delta async for deltas in generation for delta in deltas] == [last]
