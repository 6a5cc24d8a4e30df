"""Files with documents to train on: uploaded, looked at, deleted. Knows no HTTP and no SQL."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from deployments.errors import InvalidTrainingData, NotFound, PayloadTooLarge
from deployments.training_documents import Document, num_bytes, read_lines, to_line
from serve_app.config import FineTuningConfig
from serve_app.jobs.ids import derived_id, new_id
from serve_app.jobs.job import TrainingFile

T = TypeVar("T")

_NUM_THREADS = 4

_MAX_FRAME_BYTES = 4096
"""What a line may have around its texts."""


class FileStore(Protocol):
    """The files of all accounts; every method but `add` narrows to one."""

    async def add(self, file: TrainingFile) -> bool:
        """False, and nothing changes, where there is or was a file with its id."""

    async def get(self, account: str, file_id: str) -> TrainingFile:
        """Raises NotFound, also where it was deleted."""

    async def list(
        self, account: str, *, after: str | None, limit: int, purpose: str | None, oldest_first: bool
    ) -> Sequence[TrainingFile]:
        """Those beyond the file `after`; not the deleted ones."""

    async def delete(self, account: str, file_id: str, now: float) -> None:
        """Raises NotFound, also where it was deleted before."""


class Blobs(Protocol):
    """What files need of the object store. Blocks; may be called in any thread."""

    def put_blob(self, source: bytes | Path) -> str: ...

    def read_blob(self, digest: str, *, max_bytes: int) -> bytes: ...

    def fetch_blob(self, digest: str, path: Path, *, max_bytes: int) -> None: ...


class TrainingFiles:
    """Has threads of its own: an object store that does not answer holds up nothing but training data."""

    def __init__(
        self, files: FileStore, blobs: Blobs, config: FineTuningConfig, *, now: Callable[[], float] = time.time
    ) -> None:
        self._files = files
        self._blobs = blobs
        self._config = config
        self._now = now
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="files")

    def close(self) -> None:
        """Waits for nothing that is still being read or written; nothing new can be asked for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def add(
        self,
        account: str,
        *,
        filename: str,
        purpose: str,
        original: bytes | Path | None,
        documents: Iterable[Document],
        param: str = "file",
        once: bytes | None = None,
    ) -> TrainingFile:
        """Keeps the documents, and the file as it was uploaded; both are stored when this returns.

        original: None where the documents did not come as a file; their JSON lines are the file then.
        `documents` is read in another thread; what it raises is raised here. param: what the API calls the documents.
        once: names the request; the file that it made before, and that was not deleted, is answered instead.
        Raises InvalidTrainingData where there are none or too many, or one is no text (named `param[index]`);
        PayloadTooLarge; ObjectStoreError.
        """
        file_id = new_id("file-", 24) if once is None else derived_id("file-", 24, once)
        if once is not None:
            with contextlib.suppress(NotFound):
                return await self._files.get(account, file_id)
        if original is not None:
            self._check_size(await self._in_thread(_size, original))
        digest, num_documents, num_bytes = await self._in_thread(self._put_documents, documents, param)
        original_digest = digest
        if original is not None:
            num_bytes = await self._in_thread(_size, original)
            original_digest = await self._in_thread(self._blobs.put_blob, original)
        file = TrainingFile(
            id=file_id,
            account=account,
            filename=filename,
            purpose=purpose,
            bytes=num_bytes,
            digest=digest,
            original=original_digest,
            num_documents=num_documents,
            created_at=self._now(),
        )
        while not await self._files.add(file):
            # Another process was faster with the same request, or the file that it made was deleted.
            with contextlib.suppress(NotFound):
                return await self._files.get(account, file.id)
            file = replace(file, id=new_id("file-", 24))
        return file

    async def get(self, account: str, file_id: str) -> TrainingFile:
        """Raises NotFound."""
        if not file_id.isprintable():  # a zero character is nothing that a database can be asked for
            raise NotFound("there is no file with such an id")
        return await self._files.get(account, file_id)

    async def list(
        self,
        account: str,
        *,
        after: str | None = None,
        limit: int = 100,
        purpose: str | None = None,
        oldest_first: bool = False,
    ) -> Sequence[TrainingFile]:
        """The newest first, unless told otherwise; those beyond the file `after`."""
        return await self._files.list(account, after=after, limit=limit, purpose=purpose, oldest_first=oldest_first)

    async def delete(self, account: str, file_id: str) -> None:
        """Jobs that were created from the file go on. Raises NotFound."""
        await self._files.delete(account, file_id, self._now())

    async def open_content(self, account: str, file_id: str) -> tuple[BinaryIO, int]:
        """The file as it was uploaded, on this machine's disk until it is closed, and its bytes.

        Raises NotFound, ObjectStoreError, CorruptObject.
        """
        file = await self._files.get(account, file_id)
        return await self._in_thread(self._open, file.original, file.bytes), file.bytes

    async def documents(self, file: TrainingFile) -> Sequence[Document]:
        """What is trained on. Raises ObjectStoreError, CorruptObject."""
        return await self._in_thread(self._read_documents, file.digest)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _put_documents(self, documents: Iterable[Document], param: str) -> tuple[str, int, int]:
        """The digest of the blob, how many documents it holds, and its size in bytes."""
        num_documents = num_bytes = 0
        with tempfile.NamedTemporaryFile("wb", prefix="tritext-documents-") as file:
            for index, document in enumerate(documents):
                if index == self._config.max_documents:
                    raise InvalidTrainingData(f"there are more than {self._config.max_documents} documents", param)
                num_bytes += _num_bytes(document, f"{param}[{index}]")
                self._check_size(num_bytes)
                file.write(to_line(document))
                num_documents = index + 1
            if num_documents == 0:
                raise InvalidTrainingData("there is nothing to train on", param)
            file.flush()
            return self._blobs.put_blob(Path(file.name)), num_documents, file.tell()

    def _open(self, digest: str, max_bytes: int) -> BinaryIO:
        with tempfile.TemporaryDirectory(prefix="tritext-content-") as directory:
            path = Path(directory) / "content"
            self._blobs.fetch_blob(digest, path, max_bytes=max_bytes)
            return path.open("rb")  # what is open stays readable without its name

    def _read_documents(self, digest: str) -> Sequence[Document]:
        # In JSON a text is at most six times as long; around it stand quotes, or all that makes a conversation.
        max_bytes = 6 * self._config.max_data_bytes + _MAX_FRAME_BYTES * self._config.max_documents
        blob = self._blobs.read_blob(digest, max_bytes=max_bytes)
        return list(read_lines(blob))

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._config.max_data_bytes:
            raise PayloadTooLarge(f"training data may have at most {self._config.max_data_bytes} bytes")


def _size(original: bytes | Path) -> int:
    return len(original) if isinstance(original, bytes) else original.stat().st_size


def _num_bytes(document: Document, param: str) -> int:
    """In UTF-8."""
    try:
        return num_bytes(document)
    except UnicodeEncodeError:
        raise InvalidTrainingData("the document holds half of a surrogate pair, which is no text", param) from None
