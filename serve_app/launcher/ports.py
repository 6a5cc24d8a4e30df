"""The ports of a service on this machine: which are free, and whether the service answers on one."""

import errno
import http.client
import random
import socket
from dataclasses import dataclass

from serve_app.config import SetupError

HOST = "127.0.0.1"

_OTHERS = range(10_000, 30_000)
"""Below the ports that the system gives to anybody, and those that Serve gives to replicas: a choice is bound only when
Ray has started, whose processes take dozens of these."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports with a fixed number; Ray chooses the others. `fallback`, `stats` and `metrics` belong to HAProxy;
    Prometheus finds the service's own measurements at `measurements`."""

    http: int
    dashboard: int
    fallback: int
    stats: int
    metrics: int
    measurements: int


def choose(http_port: int) -> Ports:
    """The usual ports where they are free, others where not."""
    taken = {http_port}
    return Ports(
        http=http_port,
        dashboard=_prefer(8265, taken),
        fallback=_prefer(8500, taken),
        stats=_prefer(8404, taken),
        metrics=_prefer(9101, taken),
        measurements=_prefer(9464, taken),
    )


def require_free(port: int) -> None:
    """Raises SetupError where another program listens on the port."""
    reason = _bind_error(port)
    if reason == errno.EADDRINUSE:
        raise SetupError(f"port {port} is in use by another program; choose another one with --port")
    if reason is not None:
        raise SetupError(f"port {port} cannot be used: {errno.errorcode[reason]}")


def answers(port: int, path: str) -> bool:
    """Whether a GET on the loopback address is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _prefer(port: int, taken: set[int]) -> int:
    """This port if it is free, else any free one that is not in `taken`; adds the choice to `taken`."""
    choice = random.SystemRandom()
    while port in taken or _bind_error(port) is not None:
        port = choice.choice(_OTHERS)
    taken.add(port)
    return port


def _bind_error(port: int) -> int | None:
    """Tries all addresses: a listener on any of them would clash with one on loopback, or be shadowed by it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno
    return None
