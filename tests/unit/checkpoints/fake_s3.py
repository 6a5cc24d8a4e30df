"""A small S3 server that misbehaves on demand. What a real one does is asked in tests/integration."""

import re
import threading
from collections import deque
from collections.abc import Mapping
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fault(Enum):
    """BREAK_OFF: half of the answer's body, then the connection ends. STALL: no answer until the server is closed."""

    BREAK_OFF = "break off"
    STALL = "stall"


class FakeS3:
    """Single objects only, in memory. Signatures are not checked, only whether there is one.

    faults: for the next requests, one each: what goes wrong, or a status and an error code to answer.
    conditional: whether If-None-Match is obeyed. open: whether strangers are let in.
    requests: method, path and headers of what was asked.
    """

    def __init__(self, *, conditional: bool = True, is_open: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[Fault | tuple[int, str]] = deque()
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.conditional = conditional
        self.is_open = is_open
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeS3":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("Handler", (_Handler,), {"fake": self})


class _Handler(BaseHTTPRequestHandler):
    fake: FakeS3
    protocol_version = "HTTP/1.1"
    timeout = 60  # of a connection that its client keeps; shorter, it may end just when a request comes

    def log_message(self, *_words: Any) -> None:
        pass

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._goes_wrong():
            return
        if self.fake.conditional and self.headers["If-None-Match"] == "*" and self.path in self.fake.objects:
            self._refuse(412, "PreconditionFailed")
            return
        self.fake.objects[self.path] = body
        self._answer(200, b"", {"ETag": '"0"'})

    def do_GET(self) -> None:
        if self._goes_wrong():
            return
        if self.path not in self.fake.objects:
            self._refuse(404, "NoSuchKey")
            return
        content = self.fake.objects[self.path]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{len(content)}"))
        assert found is not None
        self._answer(206, content[int(found[1]) : int(found[2]) + 1])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        if not self._goes_wrong():
            self.fake.objects.pop(self.path, None)
            self._answer(204, b"")

    def _goes_wrong(self) -> bool:
        """Whether the request has its answer already."""
        self.fake.requests.append((self.command, self.path, dict(self.headers)))
        fault = self.fake.faults.popleft() if self.fake.faults else None
        if fault is None and "Authorization" not in self.headers and not self.fake.is_open:
            fault = (403, "AccessDenied")
        match fault:
            case None:
                return False
            case (status, code):
                self._refuse(status, code)
            case Fault.STALL:
                self.fake.closing.wait()
                self.close_connection = True
            case Fault.BREAK_OFF:
                content = self.fake.objects[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
        return True

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 12:00:00 GMT")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
