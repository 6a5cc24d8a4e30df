"""What is special about a directory as object store; what holds for every store is asked in tests/integration."""

import os
from pathlib import Path
from typing import Any

import pytest

from deployments.checkpoints.digests import sha256
from deployments.checkpoints.local import LocalStore
from deployments.errors import ObjectNotFound, ObjectStoreError

KEY = "blobs/sha256/a"


def create(store: LocalStore, content: bytes, key: str = KEY) -> bool:
    return store.create(key, content, sha256=sha256(content))


def files_in(directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]


def test_an_object_is_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    create(LocalStore(tmp_path / "objects"), b"text")
    assert files_in(tmp_path / "objects") == [KEY]
    assert (tmp_path / "objects" / KEY).read_bytes() == b"text"
    assert (tmp_path / "objects" / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700


def test_an_object_is_on_the_disk_before_it_can_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name, then the directory with the name."""
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path)
        done.append(f"fsync {path.parent if path.parent.name == '.unfinished' else path}")
        fsync(descriptor)

    def note_link(source: Any, target: Any) -> None:
        done.append("link")
        link(source, target)

    create(LocalStore(tmp_path), b"first", "blobs/sha256/first")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    create(LocalStore(tmp_path), b"text")
    assert done == ["fsync .unfinished", "link", "fsync blobs/sha256"]


def test_what_fails_before_its_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ObjectStoreError, match="No space left"):
        create(store, b"text")
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(ObjectStoreError, match="No space left"):
        create(store, b"text")
    assert files_in(tmp_path) == []


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not what it was"):
        LocalStore(tmp_path).create(KEY, b"text", sha256=sha256(b"other"))
    assert files_in(tmp_path) == []


def test_a_source_that_is_not_there_is_no_missing_object(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalStore(tmp_path).create(KEY, tmp_path / "nothing", sha256=sha256(b""))


def test_what_never_ended_is_dropped_when_it_is_old(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    create(store, b"text")
    unfinished = tmp_path / ".unfinished/left-by-a-crash"
    unfinished.write_bytes(b"ha")
    modified_at = unfinished.stat().st_mtime
    assert store.drop_unfinished(before=modified_at - 1) == 0
    assert store.drop_unfinished(before=modified_at + 1) == 1
    assert files_in(tmp_path) == [KEY]


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../../up", "a//b", ".hidden", "a/.unfinished", "a\x00", "a\n", "a/", "ä", "a b"],
)
def test_what_is_no_key(tmp_path: Path, key: str) -> None:
    store = LocalStore(tmp_path / "objects")
    (tmp_path / "up").write_text("not an object")
    for call in (lambda: create(store, b"", key), lambda: store.head(key), lambda: store.delete(key)):
        with pytest.raises(ValueError, match="is not an object's key"):
            call()
    assert files_in(tmp_path) == ["up"]


def test_a_directory_that_cannot_be_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file")
    store = LocalStore(tmp_path / "objects")
    with pytest.raises(ObjectStoreError, match=r"Not a directory|File exists"):
        create(store, b"text")


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "objects")
    assert list(store.list("blobs/sha256/")) == []
    assert store.drop_unfinished(before=1e12) == 0
    store.delete(KEY)
    with pytest.raises(ObjectNotFound):
        store.head(KEY)


def test_objects_that_others_can_read_are_open(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    create(store, b"text")
    assert not store.is_open_to_strangers(KEY)
    (tmp_path / KEY).chmod(0o644)
    assert store.is_open_to_strangers(KEY)
