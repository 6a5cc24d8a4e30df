"""Adapters' files on the disk: fetched once, verified, given up within the budget, shared with other generators."""

from pathlib import Path

import pytest

from deployments.adapters.files import AdapterFiles
from deployments.checkpoints.artifacts import ArtifactStore
from deployments.checkpoints.local import LocalStore
from deployments.errors import CorruptObject, InvalidAdapter
from deployments.types import AdapterRef
from tests.unit.engine.adapters import adapter_tensors, config_of, make_adapter, write_adapter


class Opening:
    """Opens the store in a directory, and counts how often."""

    def __init__(self, directory: Path) -> None:
        self.store = ArtifactStore(LocalStore(directory))
        self.number = 0

    def __call__(self) -> ArtifactStore:
        self.number += 1
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
    return {path.name for path in (tmp_path / "adapters").iterdir() if not path.name.startswith(".")}


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
    weights = tmp_path / "adapters" / ref.digest / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    make_files(opening, tmp_path).read(ref)
    assert weights.read_bytes() == whole


def test_what_was_read_longest_ago_goes_when_there_is_no_room(opening: Opening, tmp_path: Path) -> None:
    refs = [publish(opening, tmp_path, seed=seed) for seed in range(3)]
    size = sum(path.stat().st_size for path in (tmp_path / "made-0").iterdir())
    files = make_files(opening, tmp_path, max_bytes=2 * size + size // 2)
    for ref in (refs[0], refs[1], refs[0], refs[2]):
        files.read(ref)
    assert kept(tmp_path) == {refs[0].digest, refs[2].digest}


def test_files_that_are_missing_in_the_store_are_a_damage_of_it(opening: Opening, tmp_path: Path) -> None:
    with pytest.raises(CorruptObject, match="missing"):
        make_files(opening, tmp_path).read(AdapterRef("ft_model_gone", "0" * 64))


def test_an_artifact_that_is_no_adapter_is_refused(opening: Opening, tmp_path: Path) -> None:
    ref = publish(opening, tmp_path, kind="checkpoint")
    with pytest.raises(InvalidAdapter, match="no adapter"):
        make_files(opening, tmp_path).read(ref)
