"""The guards of the quick layers (tests/conftest.py) really guard."""

import socket

import pytest
import ray


def test_starting_ray_is_an_error() -> None:
    with pytest.raises(AssertionError, match="started Ray"):
        ray.init()


def test_connecting_to_another_machine_is_an_error() -> None:
    with socket.socket() as connection, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        connection.connect(("192.0.2.1", 80))


def test_connecting_to_this_machine_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        assert connection.getpeername() == server.getsockname()
