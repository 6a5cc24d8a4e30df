"""An answer out of a file: read no faster than the client takes it, and closed in the end."""

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message

from serve_app.http.opened_file import CHUNK_BYTES, OpenedFile

CONTENT = bytes(range(256)) * (CHUNK_BYTES // 256) * 3 + b"end"


async def never() -> Message:
    return await asyncio.get_running_loop().create_future()


async def test_no_more_is_read_than_the_client_has_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    sent: list[Message] = []
    file = (tmp_path / "file").open("rb", buffering=0)

    async def send(message: Message) -> None:
        sent.append(message)
        assert file.tell() == sum(len(each.get("body", b"")) for each in sent)

    await OpenedFile(file, num_bytes=len(CONTENT))({"type": "http"}, never, send)
    assert b"".join(message.get("body", b"") for message in sent) == CONTENT
    assert [message.get("more_body", False) for message in sent] == [False, True, True, True, True, False]
    assert (b"content-length", str(len(CONTENT)).encode()) in sent[0]["headers"]
    assert (b"content-disposition", b"attachment") in sent[0]["headers"]
    assert file.closed


async def test_a_client_that_goes_away_closes_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    file = (tmp_path / "file").open("rb")

    async def send(message: Message) -> None:
        if "body" in message:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await OpenedFile(file, num_bytes=len(CONTENT))({"type": "http"}, never, send)
    assert file.closed
