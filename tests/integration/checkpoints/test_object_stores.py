"""What every object store does: the directory and the S3 server, by the same tests."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.checkpoints.digests import sha256
from deployments.checkpoints.store import MAX_FREE_KEY_BYTES, ObjectStore
from deployments.errors import ObjectNotFound
from tests.integration.checkpoints.conftest import PART_BYTES, Place

pytestmark = pytest.mark.timeout(180)

KEY = "blobs/sha256/a"
NUM_WRITERS = 8


@pytest.fixture
def objects(place: Place) -> ObjectStore:
    return place.objects


def create(objects: ObjectStore, content: bytes | Path, key: str = KEY) -> bool:
    return objects.create(key, content, sha256=sha256(content))


def read(objects: ObjectStore, key: str = KEY, *, start: int = 0, stop: int = 10**9) -> bytes:
    return b"".join(objects.chunks(key, start=start, stop=stop))


def large(seed: int) -> bytes:
    """Of two parts, different for each seed."""
    return bytes([seed]) * PART_BYTES + bytes([seed]) * 1000


def large_key(seed: int) -> str:
    return f"blobs/sha256/{sha256(large(seed))}"


def test_an_object_is_created_and_read(objects: ObjectStore) -> None:
    before = time.time()
    assert create(objects, b"content")
    assert read(objects) == b"content"
    found = objects.head(KEY)
    assert (found.key, found.size) == (KEY, 7)
    assert before - 2 < found.modified_at < time.time() + 2  # S3 counts whole seconds


def test_an_object_never_changes(objects: ObjectStore) -> None:
    assert create(objects, b"first")
    assert not create(objects, b"second")
    assert read(objects) == b"first"
    assert create(objects, large(1), large_key(1))
    assert not create(objects, large(1), large_key(1))


def test_a_file_becomes_an_object(objects: ObjectStore, tmp_path: Path) -> None:
    for key, content in {KEY: b"content", large_key(1): large(1)}.items():
        (tmp_path / "file").write_bytes(content)
        assert create(objects, tmp_path / "file", key)
        assert read(objects, key) == content
        assert objects.head(key).size == len(content)


def test_ranges(objects: ObjectStore) -> None:
    create(objects, b"0123456789")
    assert read(objects, start=2, stop=5) == b"234"
    assert read(objects, start=8, stop=20) == b"89"
    assert read(objects, start=10, stop=20) == b""
    assert read(objects, start=5, stop=5) == b""
    create(objects, large(1), large_key(1))
    assert read(objects, large_key(1), start=PART_BYTES - 1, stop=PART_BYTES + 1) == b"\x01\x01"


def test_an_empty_object(objects: ObjectStore) -> None:
    assert create(objects, b"")
    assert not create(objects, b"more")
    assert objects.head(KEY).size == 0
    assert read(objects) == b""


def test_what_is_not_there(objects: ObjectStore) -> None:
    create(objects, b"content", "blobs/sha256/ab")  # whose key begins with the other one
    for call in (objects.head, objects.touch, lambda key: read(objects, key), lambda key: read(objects, key, stop=0)):
        with pytest.raises(ObjectNotFound):
            call(KEY)
    objects.delete(KEY)
    assert read(objects, "blobs/sha256/ab") == b"content"


def test_an_object_is_deleted_and_created_again(objects: ObjectStore) -> None:
    create(objects, b"first")
    objects.delete(KEY)
    with pytest.raises(ObjectNotFound):
        objects.head(KEY)
    assert create(objects, b"second")
    assert read(objects) == b"second"


def test_every_object_of_a_prefix_is_listed(objects: ObjectStore) -> None:
    """More than one page of S3."""
    keys = [f"blobs/sha256/{number:04}" for number in range(1050)]
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda key: create(objects, b"", key), keys))
    create(objects, b"content", "manifests/sha256/a.json")
    assert sorted(found.key for found in objects.list("blobs/sha256/")) == keys
    [found] = objects.list("manifests/sha256/")
    assert found == objects.head("manifests/sha256/a.json") or found.size == 7
    assert list(objects.list("nothing/")) == []


def test_a_touched_object_is_young(objects: ObjectStore) -> None:
    for key, content in {KEY: b"content", large_key(1): large(1)}.items():
        create(objects, content, key)
        before = objects.head(key).modified_at
        deadline = time.monotonic() + 10
        while objects.head(key).modified_at <= before and time.monotonic() < deadline:
            objects.touch(key)
        assert objects.head(key).modified_at > before
        assert read(objects, key) == content


@pytest.mark.parametrize("size", [10, MAX_FREE_KEY_BYTES])
def test_of_many_writers_one_wins(objects: ObjectStore, size: int) -> None:
    for round_number in range(3):
        key = f"blobs/sha256/{round_number}"
        contents = [bytes([seed]) * size for seed in range(NUM_WRITERS)]
        barrier = threading.Barrier(NUM_WRITERS)

        def race(content: bytes, key: str = key, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return create(objects, content, key)

        with ThreadPoolExecutor(NUM_WRITERS) as threads:
            won = list(threads.map(race, contents))
        assert won.count(True) == 1
        assert read(objects, key) == contents[won.index(True)]


def test_writers_of_the_same_content_do_not_disturb_each_other(objects: ObjectStore) -> None:
    content = large(7)
    with ThreadPoolExecutor(NUM_WRITERS) as threads:
        won = list(threads.map(lambda _: create(objects, content, large_key(7)), range(NUM_WRITERS)))
    assert True in won
    assert read(objects, large_key(7)) == content
    assert objects.drop_unfinished(before=time.time() + 3600) == 0


def test_nobody_sees_half_an_object(objects: ObjectStore) -> None:
    key, content = large_key(1), large(1)
    done = threading.Event()

    def watch() -> set[int]:
        sizes = set()
        while not done.is_set():
            try:
                sizes.add(objects.head(key).size)
                sizes.add(len(read(objects, key)))
            except ObjectNotFound:
                continue
        return sizes

    with ThreadPoolExecutor(2) as threads:
        watching = [threads.submit(watch) for _ in range(2)]
        for _ in range(3):
            assert create(objects, content, key)
            assert read(objects, key) == content
            objects.delete(key)
        done.set()
    assert set(itertools.chain(*(each.result() for each in watching))) <= {len(content)}


def test_what_never_ended_is_dropped_when_it_is_old(place: Place) -> None:
    create(place.objects, b"content")
    place.leave_unfinished("blobs/sha256/other")
    assert place.objects.drop_unfinished(before=time.time() - 3600) == 0
    assert place.objects.drop_unfinished(before=time.time() + 3600) == 1
    assert place.objects.drop_unfinished(before=time.time() + 3600) == 0
    assert read(place.objects) == b"content"


def test_a_source_that_is_not_what_its_digest_says(objects: ObjectStore) -> None:
    digest = sha256(b"other")
    for content in (b"content", large(1)):
        with pytest.raises(ValueError, match="is not what it was"):
            objects.create(digest, content, sha256=digest)
        with pytest.raises(ObjectNotFound):
            objects.head(digest)


def test_strangers_stay_outside(objects: ObjectStore) -> None:
    create(objects, b"content")
    assert not objects.is_open_to_strangers(KEY)
    assert [found.key for found in objects.list("blobs/sha256/")] == [KEY]
