"""One attempt against a real receiver that answers well, badly, slowly, endlessly or not at all."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from ipaddress import ip_network

import httpcore
import pytest

from serve_app.use_cases.webhook_delivery import Receipt, Undeliverable
from serve_app.webhook_sender import sender as sender_module
from serve_app.webhook_sender.sender import MAX_RESPONSE_BYTES, HttpSender, system_resolver
from serve_app.webhooks.addresses import AddressRules
from tests.webhook_receiver import Certificate, Receiver, drip, make_certificate, reset, running_receiver, status

LOCAL = AddressRules((ip_network("127.0.0.0/8"),), {443})
BODY = b'{"text":"Gr\xc3\xbc\xc3\x9fe"}'
TIMEOUT_S = 60
DEADLINE_S = 0.5


async def loopback(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


@pytest.fixture
def sender() -> HttpSender:
    return HttpSender(LOCAL, loopback, timeout_s=TIMEOUT_S)


@pytest.fixture
def hasty() -> HttpSender:
    return HttpSender(LOCAL, loopback, timeout_s=DEADLINE_S)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


async def test_the_request_is_sent_as_it_was_given(sender: HttpSender, receiver: Receiver) -> None:
    receiver.answer = status(200, b"thanks", X_Other="1")
    receipt = await sender.send(receiver.url("/a?b=c", host="Receiver.example"), {"webhook-id": "evt_1"}, BODY)
    assert receipt == Receipt(200, b"thanks", None)
    [request] = receiver.received
    assert (request.path, request.body) == ("/a?b=c", BODY)
    assert request.headers == {
        "host": f"receiver.example:{receiver.port}",
        "user-agent": "Tritext-Webhooks",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "connection": "close",
        "webhook-id": "evt_1",
    }


async def test_the_environment_names_no_proxy(
    sender: HttpSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await sender.send(receiver.url(), {}, BODY)).status == 204


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_answers_and_not_followed(sender: HttpSender, receiver: Receiver, code: int) -> None:
    receiver.answer = status(code, b"", Location=receiver.url("/elsewhere"))
    assert (await sender.send(receiver.url(), {}, BODY)).status == code
    assert [request.path for request in receiver.received] == ["/hooks"]


async def test_gone_and_slow_down_come_with_what_they_say(sender: HttpSender, receiver: Receiver) -> None:
    receiver.answers = [status(410, b"no more"), status(429, b"", Retry_After="120")]
    assert await sender.send(receiver.url(), {}, BODY) == Receipt(410, b"no more", None)
    assert await sender.send(receiver.url(), {}, BODY) == Receipt(429, b"", "120")


async def test_every_attempt_has_its_own_connection(sender: HttpSender, receiver: Receiver) -> None:
    for _ in range(3):
        await sender.send(receiver.url(), {}, BODY)
    assert receiver.num_connections == 3


async def test_of_a_huge_body_only_the_beginning_is_read(sender: HttpSender, receiver: Receiver) -> None:
    receiver.answer = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", then=b"x" * 50_000, every_s=0)
    receipt = await sender.send(receiver.url(), {}, BODY)
    assert receipt == Receipt(200, b"x" * MAX_RESPONSE_BYTES, None)


async def test_a_body_that_breaks_off_takes_nothing_from_its_status(sender: HttpSender, receiver: Receiver) -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    receiver.answer = half
    assert await sender.send(receiver.url(), {}, BODY) == Receipt(200, b"half", None)


async def test_headers_that_drip_end_at_the_deadline(hasty: HttpSender, receiver: Receiver) -> None:
    receiver.answer = drip(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    with pytest.raises(Undeliverable, match=r"no response within 0\.5 seconds"):
        await hasty.send(receiver.url(), {}, BODY)


async def test_a_body_that_drips_ends_at_the_deadline(
    sender: HttpSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def beginning_later(response: httpcore.Response, deadline: float) -> bytes:
        return await beginning(response, deadline - TIMEOUT_S)

    beginning = sender_module._beginning
    monkeypatch.setattr(sender_module, "_beginning", beginning_later)
    receiver.answer = drip(b"HTTP/1.1 202 OK\r\nContent-Length: 100000\r\n\r\n")
    receipt = await sender.send(receiver.url(), {}, BODY)
    assert receipt.status == 202
    assert set(receipt.body) <= set(b".")


async def test_what_came_of_a_body_until_the_deadline_is_kept() -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"."
        await asyncio.Event().wait()

    async with aclosing(stalling()) as body:
        response = httpcore.Response(202, content=body)
        assert await sender_module._beginning(response, asyncio.get_running_loop().time()) == b"."


async def test_a_receiver_that_says_nothing_ends_at_the_deadline(hasty: HttpSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Undeliverable, match="no response within"):
        await hasty.send(f"http://127.0.0.1:{silent.getsockname()[1]}/", {}, BODY)


async def test_a_name_server_that_says_nothing_ends_at_the_deadline() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Undeliverable, match="no response within"):
        await HttpSender(LOCAL, resolve, timeout_s=0.1).send("http://receiver.example/", {}, BODY)


async def test_a_connection_that_is_reset_is_told_of(sender: HttpSender, receiver: Receiver) -> None:
    receiver.answer = reset
    with pytest.raises(Undeliverable, match="the connection broke"):
        await sender.send(receiver.url(), {}, BODY)


@pytest.mark.parametrize(
    "answer", [b"no HTTP at all\r\n\r\n", b"HTTP/1.1 9999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, b""]
)
async def test_what_is_no_http_is_told_of(sender: HttpSender, receiver: Receiver, answer: bytes) -> None:
    async def nonsense(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    receiver.answer = nonsense
    with pytest.raises(Undeliverable, match="the connection broke"):
        await sender.send(receiver.url(), {}, BODY)


async def test_a_closed_port_is_told_of(sender: HttpSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(Undeliverable, match="no connection could be made"):
        await sender.send(f"http://127.0.0.1:{port}/", {}, BODY)


async def test_a_url_that_the_rules_forbid_by_now_is_not_called(receiver: Receiver) -> None:
    sender = HttpSender(AddressRules((), {443}), loopback, timeout_s=TIMEOUT_S)
    with pytest.raises(Undeliverable, match="https://"):
        await sender.send(receiver.url(host="receiver.example"), {}, BODY)
    with pytest.raises(Undeliverable, match="may not be called"):
        await sender.send("https://receiver.example/", {}, BODY)
    assert receiver.num_connections == 0


async def test_tls_goes_by_the_name_though_the_address_is_connected_to(certificate: Certificate) -> None:
    names: list[str | None] = []
    certificate.server.sni_callback = lambda _connection, name, _context: names.append(name)
    async with running_receiver(certificate.server) as receiver:
        sender = HttpSender(LOCAL, loopback, timeout_s=TIMEOUT_S, tls=certificate.client)
        receipt = await sender.send(receiver.url(host="receiver.example", scheme="https"), {}, BODY)
        assert receipt.status == 204
        assert receiver.received[0].headers["host"] == f"receiver.example:{receiver.port}"
        assert names == ["receiver.example"]


async def test_a_receiver_with_another_name_or_an_unknown_certificate_is_not_told(certificate: Certificate) -> None:
    async with running_receiver(certificate.server) as receiver:
        for tls, host in ((certificate.client, "other.example"), (None, "receiver.example")):
            sender = HttpSender(LOCAL, loopback, timeout_s=TIMEOUT_S, tls=tls)
            with pytest.raises(Undeliverable, match="certificate is not valid"):
                await sender.send(receiver.url(host=host, scheme="https"), {}, BODY)
        assert receiver.received == []


async def test_a_receiver_without_tls_is_told_of() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Undeliverable, match="TLS"):
            await HttpSender(LOCAL, loopback, timeout_s=TIMEOUT_S).send(f"https://127.0.0.1:{port}/", {}, BODY)


async def test_a_tls_handshake_that_does_not_end_leaves_no_connection(hasty: HttpSender, receiver: Receiver) -> None:
    """An unclosed one would be a warning, and so an error."""
    with pytest.raises(Undeliverable, match="no response within"):
        await hasty.send(receiver.url(scheme="https"), {}, BODY)
    gc.collect()


async def test_cancelling_an_attempt_ends_it(receiver: Receiver) -> None:
    receiver.answer = drip(b"")
    attempt = asyncio.create_task(HttpSender(LOCAL, loopback, timeout_s=TIMEOUT_S).send(receiver.url(), {}, BODY))
    await receiver.wait_for(1)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt


async def test_the_system_resolves_names() -> None:
    async with system_resolver() as resolve:
        assert "127.0.0.1" in await resolve("localhost", 443)
        assert await resolve("127.0.0.1", 443) == ["127.0.0.1"]
        with pytest.raises(OSError, match=r"."):
            await resolve("no-such-name.invalid", 443)
