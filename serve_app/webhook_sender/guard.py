"""The boundary between what clients name and the network: connections are made to checked addresses only."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address

import httpcore

from serve_app.use_cases.webhook_delivery import Undeliverable
from serve_app.webhooks.addresses import Address, AddressRules

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host's name. Raises OSError."""

_NEXT_S = 3.0
"""After so many seconds the next address of a host is tried."""


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Looks a name up once, asks that the rules permit every address, and connects to one of these very addresses.

    TLS and the request go on with the name. is_secure: the connection will be one of TLS. For one attempt, at the end
    of which it must be closed: httpcore forgets a connection whose TLS handshake is cancelled.
    """

    def __init__(self, rules: AddressRules, resolve: Resolve, *, is_secure: bool) -> None:
        self._rules = rules
        self._resolve = resolve
        self._is_secure = is_secure
        self._backend = httpcore.AnyIOBackend()
        self._streams: list[httpcore.AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises Undeliverable, and what httpcore raises."""
        *others, last = await self._addresses(host, port)
        for address in others:
            try:
                return await self._connect(address, port, _NEXT_S, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._connect(last, port, timeout, local_address, socket_options)

    async def aclose(self) -> None:
        """Closes every connection that was made."""
        for stream in self._streams:
            await stream.aclose()

    async def _connect(
        self,
        address: Address,
        port: int,
        timeout_s: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._backend.connect_tcp(str(address), port, timeout_s, local_address, socket_options)
        self._streams.append(stream)
        return stream

    async def _addresses(self, host: str, port: int) -> Sequence[Address]:
        try:
            # With a zone, such as fe80::1%eth0, an address is not public.
            addresses = [ip_address(found) for found in dict.fromkeys(await self._resolve(host, port))]
        except (OSError, ValueError):
            addresses = []
        if not addresses:
            raise Undeliverable("the host's name could not be resolved")
        if not all(self._rules.permit(address, port, is_secure=self._is_secure) for address in addresses):
            raise Undeliverable("the host has an address that may not be called this way")
        return addresses
