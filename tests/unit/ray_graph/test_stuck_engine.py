"""A replica whose engine never ends its step ends itself, since nothing else would end it or its calls."""

import pytest

from deployments import ray_graph
from deployments.errors import EngineDead, EngineStuck
from deployments.ray_graph import GeneratorReplica


class Node:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def check_health(self) -> None:
        if self._error is not None:
            raise self._error


class Replica(GeneratorReplica):
    """Without what starts and stops a model."""

    def __init__(self, error: Exception | None) -> None:
        self._node = Node(error)  # type: ignore[assignment]

    def __del__(self) -> None:
        pass


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(ray_graph.os, "_exit", found.append)
    return found


async def test_stuck_engine_ends_the_process(exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    await Replica(EngineStuck("a step has not ended for more than 300 s")).check_health()
    assert exits == [1]
    assert "a step has not ended for more than 300 s" in caplog.text


async def test_dead_engine_is_told_to_serve_and_nothing_is_to_a_healthy_one(exits: list[int]) -> None:
    with pytest.raises(EngineDead):
        await Replica(EngineDead("the step thread died")).check_health()
    await Replica(None).check_health()
    assert exits == []
