"""An answer that is read from a disk as fast as the client takes it; however slow that is, no memory holds it."""

import asyncio
from typing import BinaryIO

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 256 * 1024


class OpenedFile(Response):
    """Sends the file from where it stands, as something to be saved, and closes it however the exchange ends."""

    media_type = "application/octet-stream"

    def __init__(self, file: BinaryIO, *, num_bytes: int) -> None:
        # Never shown by a browser in place of a page of this service.
        super().__init__(headers={"Content-Disposition": "attachment", "Content-Length": str(num_bytes)})
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        with self._file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while chunk := await asyncio.to_thread(self._file.read, CHUNK_BYTES):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
