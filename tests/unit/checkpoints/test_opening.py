from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.checkpoints.opening import open_artifacts
from deployments.checkpoints.s3.store import S3Store
from deployments.checkpoints.store import UnusableStore
from deployments.config import CheckpointConfig


def test_by_default_objects_lie_under_home(tmp_path: Path) -> None:
    artifacts = open_artifacts(CheckpointConfig(), tmp_path / "home")
    assert not (tmp_path / "home").exists()
    digest = artifacts.put_blob(b"text")
    assert (tmp_path / "home/objects/blobs/sha256" / digest).read_bytes() == b"text"


def test_a_directory_by_its_url(tmp_path: Path) -> None:
    artifacts = open_artifacts(CheckpointConfig(url=f"file://{tmp_path}/with%20space"), tmp_path)
    digest = artifacts.put_blob(b"text")
    assert (tmp_path / "with space/blobs/sha256" / digest).is_file()


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/with/a-prefix", "s3://bucket/prefix/"])
def test_a_bucket_by_its_url(url: str, tmp_path: Path) -> None:
    artifacts = open_artifacts(CheckpointConfig(url=url, endpoint_url="http://127.0.0.1:1"), tmp_path)
    assert isinstance(artifacts.objects, S3Store)


@pytest.mark.parametrize(
    "url",
    [
        "file://relative/path", "file://./here", "file://~/here", "file:///path?query", "s3://", "s3://B/prefix",
        "s3://bucket/a//b", "s3://bucket/../up", "s3://bucket/a b", "s3://key:secret@bucket/a", "s3://bucket/a?b",
        "s3://bucket/a#b",
    ],
)  # fmt: skip
def test_other_urls_are_refused_in_a_sentence(url: str, tmp_path: Path) -> None:
    with pytest.raises((UnusableStore, ValidationError), match=r"URL|pattern"):
        open_artifacts(CheckpointConfig(url=url), tmp_path)


def test_an_endpoint_that_is_no_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableStore, match="S3 client"):
        open_artifacts(CheckpointConfig(url="s3://bucket", endpoint_url="no url"), tmp_path)


def test_without_credentials_s3_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UnusableStore, match="AWS_ACCESS_KEY_ID"):
        open_artifacts(CheckpointConfig(url="s3://bucket"), tmp_path)


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody-has-this-one")
    with pytest.raises(UnusableStore, match="nobody-has-this-one"):
        open_artifacts(CheckpointConfig(url="s3://bucket"), tmp_path)
