"""The guard: every address of a host is checked, and the connection goes to one that was, whatever names say later."""

import socket
from collections.abc import Sequence
from ipaddress import ip_network

import httpcore
import pytest

from serve_app.use_cases.webhook_delivery import Undeliverable
from serve_app.webhook_sender.guard import GuardedBackend
from serve_app.webhooks.addresses import AddressRules

PUBLIC = AddressRules((), {443})
LOCAL = AddressRules((ip_network("127.0.0.0/8"),), {443})


class Names:
    """A name server whose answers are given in turn, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.num_questions = 0

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.num_questions += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def listener() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:10.0.0.1"],
        ["fe80::1%eth0"],
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "::1"],
    ],
)
async def test_one_address_inside_is_enough_to_call_none(addresses: Sequence[str]) -> None:
    guard = GuardedBackend(PUBLIC, Names(addresses), is_secure=True)
    with pytest.raises(Undeliverable, match="may not be called"):
        await guard.connect_tcp("receiver.example", 443)


@pytest.mark.parametrize("addresses", [[], ["no address"]])
async def test_a_name_without_an_address_is_not_called(addresses: Sequence[str]) -> None:
    guard = GuardedBackend(PUBLIC, Names(addresses), is_secure=True)
    with pytest.raises(Undeliverable, match="could not be resolved"):
        await guard.connect_tcp("receiver.example", 443)


async def test_a_name_that_is_not_found_is_not_called() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    guard = GuardedBackend(PUBLIC, resolve, is_secure=True)
    with pytest.raises(Undeliverable, match="could not be resolved"):
        await guard.connect_tcp("receiver.example", 443)


async def test_a_name_that_changes_its_address_is_asked_once(listener: socket.socket) -> None:
    """DNS rebinding: good when it is checked, bad when it is connected to."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    guard = GuardedBackend(LOCAL, names, is_secure=True)
    stream = await guard.connect_tcp("receiver.example", listener.getsockname()[1])
    assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
    assert names.num_questions == 1
    await stream.aclose()
    with pytest.raises(Undeliverable):
        await guard.connect_tcp("receiver.example", listener.getsockname()[1])


async def test_plain_connections_and_other_ports_are_for_open_networks_only(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for is_secure, rules in ((False, LOCAL), (True, LOCAL)):
        stream = await GuardedBackend(rules, Names(["127.0.0.1"]), is_secure=is_secure).connect_tcp("a", port)
        await stream.aclose()
    for is_secure, port in ((False, 443), (True, 444)):
        with pytest.raises(Undeliverable):
            await GuardedBackend(LOCAL, Names(["8.8.8.8"]), is_secure=is_secure).connect_tcp("a", port)


async def test_the_next_address_is_tried_where_one_does_not_answer(listener: socket.socket) -> None:
    guard = GuardedBackend(LOCAL, Names(["127.0.0.2", "127.0.0.1"]), is_secure=True)
    stream = await guard.connect_tcp("receiver.example", listener.getsockname()[1])
    assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
    await stream.aclose()


async def test_where_no_address_answers_it_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    guard = GuardedBackend(LOCAL, Names(["127.0.0.1", "127.0.0.2"]), is_secure=True)
    with pytest.raises(httpcore.ConnectError):
        await guard.connect_tcp("receiver.example", port)


async def test_there_are_no_unix_sockets() -> None:
    with pytest.raises(NotImplementedError):
        await GuardedBackend(LOCAL, Names([]), is_secure=False).connect_unix_socket("/run/docker.sock")
