"""Adapters' files on the disk: fetched once, verified, given up within the budget, shared with other generators."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.adapters.directories import held
from deployments.adapters.files import AdapterFiles
from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.checkpoints.store import UnusableStore
from deployments.errors import CorruptObject, InvalidAdapter, ObjectStoreError, StorageError
from deployments.types import AdapterRef
from tests.unit.engine.adapters import adapter_tensors, config_of, make_adapter, write_adapter


class Opening:
    """Opens the store in a directory, and counts how often; raises `error` instead, once there is one."""

    def __init__(self, directory: Path) -> None:
        self.store = ArtifactStore(LocalStore(directory))
        self.number = 0
        self.error: Exception | None = None

    def __call__(self) -> ArtifactStore:
        self.number += 1
        if self.error is not None:
            raise self.error
        return self.store


@pytest.fixture
def opening(tmp_path: Path) -> Opening:
    return Opening(tmp_path / "objects")


def publish(opening: Opening, tmp_path: Path, *, seed: int = 0, kind: str = "adapter") -> AdapterRef:
    adapter = make_adapter({"model.linear": (8, 8)}, seed=seed)
    directory = write_adapter(tmp_path / f"made-{seed}", adapter_tensors(adapter), config_of(adapter))
    files = {path.name: path for path in directory.iterdir()}
    published = opening.store.publish(files, {"kind": kind, "model": f"ft_model_{seed}"})
    return AdapterRef(f"ft_model_{seed}", published.digest)


def make_files(opening: Opening, tmp_path: Path, *, max_bytes: int = 10**6) -> AdapterFiles:
    return AdapterFiles(tmp_path / "adapters", opening, max_bytes=max_bytes)


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "adapters").iterdir() if path.is_dir()}


def size_of(tmp_path: Path, *refs: AdapterRef) -> int:
    directories = [tmp_path / "adapters" / ref.digest for ref in refs] or [tmp_path / "adapters"]
    return sum(path.stat().st_size for directory in directories for path in directory.rglob("*") if path.is_file())


def test_an_adapter_is_read_as_it_was_published(opening: Opening, tmp_path: Path) -> None:
    ref = publish(opening, tmp_path, seed=3)
    files = make_files(opening, tmp_path)
    assert opening.number == 0  # nobody needs the store before the first adapter
    read = files.read(ref)
    [(path, pair)] = make_adapter({"model.linear": (8, 8)}, seed=3).pairs.items()
    assert read.ref == ref
    assert (read.pairs[path].a == pair.a).all() and (read.pairs[path].b == pair.b).all()
    assert kept(tmp_path) == {ref.digest}


def test_what_is_here_is_verified_and_made_anew_where_it_is_damaged(opening: Opening, tmp_path: Path) -> None:
    ref = publish(opening, tmp_path)
    make_files(opening, tmp_path).read(ref)
    kept = tmp_path / "adapters" / ref.digest
    for damaged in (kept / "files" / "adapter_model.safetensors", kept / "manifest.json"):
        whole = damaged.read_bytes()
        for damage in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], b""):
            damaged.write_bytes(damage)
            make_files(opening, tmp_path).read(ref)
            assert damaged.read_bytes() == whole
    damaged.unlink()
    make_files(opening, tmp_path).read(ref)
    assert damaged.read_bytes() == whole


def test_what_is_here_needs_no_object_store(opening: Opening, tmp_path: Path) -> None:
    ref = publish(opening, tmp_path)
    make_files(opening, tmp_path).read(ref)
    opening.error = ObjectStoreError("it does not answer")
    assert make_files(opening, tmp_path).read(ref).ref == ref
    assert opening.number == 1


def test_a_store_that_comes_back_is_asked_again(opening: Opening, tmp_path: Path) -> None:
    ref = publish(opening, tmp_path)
    files = make_files(opening, tmp_path)
    opening.error = UnusableStore("no credentials in the environment")
    with pytest.raises(ObjectStoreError, match="not set up"):
        files.read(ref)
    opening.error = None
    assert files.read(ref).ref == ref


def test_what_was_read_longest_ago_goes_when_there_is_no_room(opening: Opening, tmp_path: Path) -> None:
    refs = [publish(opening, tmp_path, seed=seed) for seed in range(3)]
    make_files(opening, tmp_path).read(refs[0])
    files = make_files(opening, tmp_path, max_bytes=size_of(tmp_path, refs[0]) * 5 // 2)
    for ref in (refs[1], refs[0], refs[2]):
        files.read(ref)
    assert kept(tmp_path) == {refs[0].digest, refs[2].digest}


def test_what_is_being_read_stays_until_there_is_room_to_make_again(opening: Opening, tmp_path: Path) -> None:
    refs = [publish(opening, tmp_path, seed=seed) for seed in range(3)]
    files = make_files(opening, tmp_path, max_bytes=1)
    files.read(refs[0])
    with held(tmp_path / "adapters" / refs[0].digest):
        files.read(refs[1])
        assert kept(tmp_path) == {refs[0].digest, refs[1].digest}
    files.read(refs[2])
    assert kept(tmp_path) == {refs[2].digest}


def test_parts_that_an_interrupted_fetch_left_count_and_go_with_their_adapter(opening: Opening, tmp_path: Path) -> None:
    refs = [publish(opening, tmp_path, seed=seed) for seed in range(2)]
    left = tmp_path / "adapters" / refs[0].digest / ".files.partial"
    left.mkdir(parents=True)
    (left / "data").write_bytes(b"x" * 10**6)
    make_files(opening, tmp_path).read(refs[1])
    assert kept(tmp_path) == {refs[1].digest}


def test_readers_of_one_directory_never_take_from_each_other(opening: Opening, tmp_path: Path) -> None:
    """Each with its own descriptors, as processes have: locks know no difference."""
    refs = [publish(opening, tmp_path, seed=seed) for seed in range(4)]
    made = {ref: make_adapter({"model.linear": (8, 8)}, seed=seed).pairs for seed, ref in enumerate(refs)}

    def read(seed: int) -> None:
        files = make_files(opening, tmp_path, max_bytes=1500)  # of one, and some of another
        chosen = random.Random(seed)
        for _ in range(25):
            ref = chosen.choice(refs)
            [(path, pair)] = files.read(ref).pairs.items()
            assert (pair.a == made[ref][path].a).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    make_files(opening, tmp_path, max_bytes=1).read(publish(opening, tmp_path, seed=9))
    assert len(kept(tmp_path)) == 1


def test_a_disk_on_which_nothing_can_be_removed_refuses_nothing(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "adapters" / ".lock").mkdir(parents=True)
    ref = publish(opening, tmp_path)
    assert make_files(opening, tmp_path, max_bytes=1).read(ref).ref == ref


def test_a_disk_that_cannot_be_used_is_told(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("in the way")
    with pytest.raises(StorageError):
        make_files(opening, tmp_path).read(publish(opening, tmp_path))


def test_files_that_are_missing_in_the_store_are_a_damage_of_it(opening: Opening, tmp_path: Path) -> None:
    with pytest.raises(CorruptObject, match="missing"):
        make_files(opening, tmp_path).read(AdapterRef("ft_model_gone", "0" * 64))


def test_an_artifact_that_is_no_adapter_is_refused(opening: Opening, tmp_path: Path) -> None:
    ref = publish(opening, tmp_path, kind="checkpoint")
    with pytest.raises(InvalidAdapter, match="no adapter"):
        make_files(opening, tmp_path).read(ref)


def test_who_needs_no_adapters_does_not_wait_for_an_s3_client() -> None:
    check = "import sys, deployments.generator; assert not {'boto3', 'botocore'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
