"""Somebody who subscribes to webhooks: an HTTP server on the loopback, in a thread, that remembers what it is sent."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Delivery:
    """One request as it came. accepted: it was answered with 204, not with an error."""

    headers: dict[str, str]
    body: bytes
    accepted: bool

    @property
    def event(self) -> Any:
        return json.loads(self.body)


@dataclass
class Subscriber:
    url: str
    deliveries: list[Delivery] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def accepted(self, **data: Any) -> list[Delivery]:
        """Those that were accepted, of events with these fields in their data."""
        with self.changed:
            return [
                delivery
                for delivery in self.deliveries
                if delivery.accepted and data.items() <= delivery.event["data"].items()
            ]

    def wait_for(self, number: int, *, timeout_s: float, **data: Any) -> list[Delivery]:
        """At least so many of them. Raises AssertionError."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.accepted(**data)) >= number, timeout_s):
                raise AssertionError(f"not within {timeout_s:g} s: {number} webhooks with {data}")
        return self.accepted(**data)


@contextmanager
def subscribed(*, refuses: float = 0.0, seed: int = 0) -> Iterator[Subscriber]:
    """A subscriber that answers this part of the requests with 500, for as long as the context lasts."""
    choice = random.Random(seed)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with subscriber.changed:
                accepted = choice.random() >= refuses
                headers = {name.lower(): value for name, value in self.headers.items()}
                subscriber.deliveries.append(Delivery(headers, body, accepted))
                subscriber.changed.notify_all()
            self.send_response(204 if accepted else 500)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    subscriber = Subscriber(f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    try:
        yield subscriber
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
