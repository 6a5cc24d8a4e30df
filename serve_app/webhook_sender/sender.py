"""One HTTP POST to an endpoint: no redirects, no proxy, a deadline for all of it, a bound on what is read."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

import httpcore

from deployments.errors import InvalidParameter
from serve_app.use_cases.webhook_delivery import Receipt, Undeliverable
from serve_app.webhook_sender.guard import GuardedBackend, Resolve
from serve_app.webhooks.addresses import AddressRules
from serve_app.webhooks.sharing import MAX_SENDING
from serve_app.webhooks.target import Target, parse_target

MAX_RESPONSE_BYTES = 64 * 1024
"""So much of a response's body is read; then the connection is closed."""


class HttpSender:
    """See `serve_app.use_cases.webhook_delivery.Sender`. Every attempt has a connection of its own.

    timeout_s: for the whole of one attempt. tls: by which receivers are known, as the system trusts them by default.
    """

    def __init__(
        self, rules: AddressRules, resolve: Resolve, *, timeout_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._rules = rules
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._tls = tls or httpcore.default_ssl_context()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        try:
            target = parse_target(url, self._rules)
        except InvalidParameter as error:
            raise Undeliverable(error.message) from None
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            return await self._post(target, headers, body, deadline)
        except (TimeoutError, httpcore.TimeoutException):
            raise Undeliverable(f"there was no response within {self._timeout_s:g} seconds") from None
        except httpcore.ConnectError as error:
            raise Undeliverable(_why_not_connected(error)) from None
        except (httpcore.NetworkError, httpcore.ProtocolError):
            raise Undeliverable("the connection broke before there was a response") from None

    async def _post(self, target: Target, headers: Mapping[str, str], body: bytes, deadline: float) -> Receipt:
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        sent = {
            "Host": target.authority,
            "User-Agent": "Tritext-Webhooks",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        backend = GuardedBackend(self._rules, self._resolve, is_secure=target.is_secure)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(backend.aclose)
            pool = httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=backend)
            connections = await stack.enter_async_context(pool)
            async with asyncio.timeout_at(deadline):
                stream = connections.stream("POST", url, headers=list(sent.items()), content=body)
                response = await stack.enter_async_context(stream)
            retry_after = next((value for name, value in response.headers if name.lower() == b"retry-after"), None)
            return Receipt(
                status=response.status,
                body=await _beginning(response, deadline),
                retry_after=None if retry_after is None else retry_after.decode("latin-1"),
            )


async def _beginning(response: httpcore.Response, deadline: float) -> bytes:
    """What comes of the body until then, up to its bound. A body that breaks off takes nothing from its status."""
    body = bytearray()
    try:
        async with asyncio.timeout_at(deadline):
            async for piece in response.aiter_stream():
                body += piece
                if len(body) >= MAX_RESPONSE_BYTES:
                    break
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        pass
    return bytes(body[:MAX_RESPONSE_BYTES])


def _why_not_connected(error: httpcore.ConnectError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the receiver's certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "the receiver does not speak TLS as it should"
        cause = cause.__cause__ or cause.__context__
    return "no connection could be made"


@asynccontextmanager
async def system_resolver() -> AsyncGenerator[Resolve, None]:
    """Names as this machine resolves them, in threads of its own: a name server that is slow to answer for one host
    holds up nobody else."""
    threads = ThreadPoolExecutor(MAX_SENDING, thread_name_prefix="resolve")

    def look_up(host: str, port: int) -> Sequence[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(threads, look_up, host, port)

    try:
        yield resolve
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
