"""The ports of a service on this machine: which are free, and whether the service answers on one."""

import errno
import http.client
import socket
from dataclasses import dataclass

from serve_app.config import SetupError

HOST = "127.0.0.1"


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
    while port in taken or _bind_error(port) is not None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
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
