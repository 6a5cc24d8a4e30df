"""What garbage collection removes, and what it never does: over a store in memory, with a clock that the tests set."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.digests import sha256
from deployments.checkpoints.garbage import Garbage
from deployments.checkpoints.layout import BLOBS, blob_key, manifest_key
from deployments.errors import CorruptObject
from tests.unit.checkpoints.memory_store import MemoryStore

GRACE_S = 100.0


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def artifacts(store: MemoryStore) -> ArtifactStore:
    return over(store)


def over(store: MemoryStore) -> ArtifactStore:
    return ArtifactStore(store, grace_s=GRACE_S, clock=lambda: store.now)


@pytest.fixture
def publish(artifacts: ArtifactStore, tmp_path: Path) -> "Publish":
    return Publish(artifacts, tmp_path)


class Publish:
    """Publishes artifacts of one file."""

    def __init__(self, artifacts: ArtifactStore, directory: Path) -> None:
        self._artifacts = artifacts
        self._path = directory / "file"

    def __call__(self, content: str, **about: str) -> str:
        self._path.write_text(content)
        return self._artifacts.publish({"file.txt": self._path}, about).digest


def collect(artifacts: ArtifactStore, *manifests: str, blobs: tuple[str, ...] = ()) -> Garbage:
    store = artifacts.objects
    assert isinstance(store, MemoryStore)
    return artifacts.collect_garbage(manifests=manifests, blobs=blobs, now=store.now)


def test_what_is_named_stays_and_what_is_not_goes(
    artifacts: ArtifactStore, store: MemoryStore, publish: Publish
) -> None:
    kept, dropped = publish("kept"), publish("dropped")
    named, unnamed = artifacts.put_blob(b"named"), artifacts.put_blob(b"unnamed")
    store.now += GRACE_S + 1
    num_bytes = len(store.objects[manifest_key(dropped)][0]) + len(b"dropped") + len(b"unnamed")

    garbage = collect(artifacts, kept, blobs=(named,))

    assert garbage == Garbage(num_manifests=1, num_blobs=2, num_bytes=num_bytes, num_unfinished=0, missing=())
    assert set(store.objects) == {manifest_key(kept), blob_key(sha256(b"kept")), blob_key(named)}
    assert blob_key(unnamed) not in store.objects


def test_a_blob_of_two_manifests_goes_with_the_second(
    artifacts: ArtifactStore, store: MemoryStore, publish: Publish
) -> None:
    first, second = publish("shared", job="1"), publish("shared", job="2")
    store.now += GRACE_S + 1
    assert collect(artifacts, second).num_blobs == 0
    assert manifest_key(first) not in store.objects
    assert collect(artifacts).num_blobs == 1
    assert not store.objects


def test_what_is_young_stays(artifacts: ArtifactStore, store: MemoryStore, publish: Publish) -> None:
    publish("new")
    artifacts.put_blob(b"new too")
    before = dict(store.objects)
    store.now += GRACE_S - 1
    assert collect(artifacts) == Garbage(0, 0, 0, 0, ())
    assert store.objects == before


def test_a_young_manifest_keeps_its_old_blobs(artifacts: ArtifactStore, store: MemoryStore, publish: Publish) -> None:
    """It may be about to be named, and its blobs may be older than it."""
    publish("shared")
    digest = publish("shared", job="2")
    for key, (content, _) in store.objects.items():
        if key.startswith(BLOBS):
            store.objects[key] = (content, store.now - 10 * GRACE_S)
    collect(artifacts)
    assert blob_key(artifacts.read_manifest(digest).files[0].sha256) in store.objects


def test_a_blob_that_is_stored_again_is_young_again(artifacts: ArtifactStore, store: MemoryStore) -> None:
    digest = artifacts.put_blob(b"again")
    store.now += GRACE_S + 1
    assert artifacts.put_blob(b"again") == digest
    collect(artifacts)
    store.now += GRACE_S / 2
    collect(artifacts)
    assert artifacts.read_blob(digest, max_bytes=10) == b"again"


def test_what_is_touched_after_it_was_listed_stays(artifacts: ArtifactStore, store: MemoryStore) -> None:
    digest = artifacts.put_blob(b"again")
    store.now += GRACE_S + 1

    def store_again(name: str, key: str) -> None:
        if name == "list" and key == blob_key(digest):
            store.before = lambda _name, _key: None
            artifacts.put_blob(b"again")

    store.before = store_again
    assert collect(artifacts).num_blobs == 0
    assert blob_key(digest) in store.objects


def test_a_manifest_that_is_published_again_meanwhile_keeps_its_blobs(
    artifacts: ArtifactStore, store: MemoryStore, publish: Publish
) -> None:
    digest = publish("again")
    store.now += GRACE_S + 1

    def publish_again(name: str, key: str) -> None:
        if name == "list" and key == manifest_key(digest):
            store.before = lambda _name, _key: None
            publish("again")

    store.before = publish_again
    assert collect(artifacts) == Garbage(0, 0, 0, 0, ())
    assert blob_key(sha256(b"again")) in store.objects


def test_publishing_mends_what_a_slow_collection_removes_under_its_hands(
    artifacts: ArtifactStore, store: MemoryStore, publish: Publish, tmp_path: Path
) -> None:
    """It had found the blob old before, and removes it now."""
    publish("again", job="1")
    store.now += GRACE_S + 1

    def remove_blob(name: str, key: str) -> None:
        if name == "create" and not key.startswith(BLOBS):
            del store.objects[blob_key(sha256(b"again"))]

    store.before = remove_blob
    digest = publish("again", job="2")
    store.before = lambda _name, _key: None
    artifacts.fetch(digest, tmp_path / "fetched")
    assert (tmp_path / "fetched/file.txt").read_text() == "again"


def test_nothing_is_removed_where_a_manifest_cannot_be_read(
    artifacts: ArtifactStore, store: MemoryStore, publish: Publish
) -> None:
    digest = publish("kept")
    store.now += GRACE_S + 1
    store.objects[manifest_key(digest)] = (b"{}", store.now)
    with pytest.raises(CorruptObject):
        collect(artifacts, digest)
    assert blob_key(sha256(b"kept")) in store.objects


def test_what_is_no_blob_and_no_manifest_is_left_alone(artifacts: ArtifactStore, store: MemoryStore) -> None:
    others = ["blobs/sha256/notes.txt", "manifests/sha256/notes.json", f"blobs/sha256/{sha256(b'')}.json", "readme.txt"]
    for key in others:
        store.create(key, b"not ours", sha256=sha256(b"not ours"))
    assert collect(artifacts) == Garbage(0, 0, 0, 0, ())
    store.now += GRACE_S + 1
    assert collect(artifacts) == Garbage(0, 0, 0, 0, ())
    assert sorted(store.objects) == sorted(others)


def test_a_manifest_that_should_be_there_is_reported(
    artifacts: ArtifactStore, store: MemoryStore, publish: Publish
) -> None:
    there, gone = publish("kept"), sha256(b"gone")
    store.now += GRACE_S + 1
    assert collect(artifacts, there, gone).missing == (gone,)
    assert blob_key(sha256(b"kept")) in store.objects


class Collections(RuleBasedStateMachine):
    """Jobs publish, the database names and forgets, time passes, and garbage is collected, in any order.

    What is published is named within half the grace period, as the contract of `put_blob` asks.
    """

    published = Bundle("published")

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.artifacts = over(self.store)
        self.path = Path(__file__)  # any file; what is published differs by the blob beside it
        self.named: set[str] = set()
        self.blobs: set[str] = set()
        self.pending: dict[str, float] = {}

    @rule(target=published, job=st.integers(0, 3))
    def publish(self, job: int) -> str:
        digest = self.artifacts.publish({"file.txt": self.path}, {"job": job}).digest
        self.pending[digest] = self.store.now
        return digest

    @rule(digest=published)
    def name(self, digest: str) -> None:
        if self.store.now - self.pending[digest] <= GRACE_S / 2:
            self.named.add(digest)

    @rule(digest=published)
    def forget(self, digest: str) -> None:
        self.named.discard(digest)

    @rule(content=st.sampled_from([b"0", b"1"]))
    def put_and_name_blob(self, content: bytes) -> None:
        self.blobs.add(self.artifacts.put_blob(content))

    @rule(content=st.sampled_from([b"0", b"1"]))
    def forget_blob(self, content: bytes) -> None:
        self.blobs.discard(sha256(content))

    @rule(seconds=st.sampled_from([GRACE_S / 3, GRACE_S, 3 * GRACE_S]))
    def wait(self, seconds: float) -> None:
        self.store.now += seconds

    @rule()
    def collect(self) -> None:
        found = self.artifacts.collect_garbage(manifests=self.named, blobs=self.blobs, now=self.store.now)
        assert found.missing == ()

    @invariant()
    def what_is_named_is_there(self) -> None:
        for digest in self.named:
            for file in self.artifacts.read_manifest(digest).files:
                assert blob_key(file.sha256) in self.store.objects
        assert {blob_key(digest) for digest in self.blobs} <= set(self.store.objects)


TestCollections = Collections.TestCase
TestCollections.settings = settings(max_examples=50, stateful_step_count=30)
