import socket
from collections.abc import Iterator
from dataclasses import fields

import pytest

from serve_app.config import SetupError
from serve_app.launcher import ports


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((ports.HOST, 0)) as server:
        yield server


def test_a_port_in_use_is_told_in_a_sentence(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(SetupError, match=rf"port {port} is in use .* --port"):
        ports.require_free(port)


def test_a_free_port_passes(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    ports.require_free(port)


def test_the_ports_of_a_service_are_distinct_and_avoid_its_own() -> None:
    chosen = ports.choose(8500)
    numbers = [getattr(chosen, field.name) for field in fields(chosen)]
    assert chosen.http == 8500
    assert len(set(numbers)) == len(numbers)


def test_what_stands_in_for_a_usual_port_is_none_that_the_system_gives_to_others() -> None:
    """Ray's processes, which start first, would take it."""
    assert ports.choose(8500).fallback < 30_000


def test_nobody_at_the_port_is_no_answer(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    assert not ports.answers(port, "/ready")
