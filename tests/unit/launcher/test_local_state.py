import stat
from pathlib import Path

import pytest

from serve_app.config import SetupError
from serve_app.launcher import local_state


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    local_state.ensure_secret(path)
    first = path.read_text()
    local_state.ensure_secret(path)
    assert path.read_text() == first
    assert len(first.strip()) == 64
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_service_from_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (
        local_state.only_one(tmp_path),
        pytest.raises(SetupError, match="already runs"),
        local_state.only_one(tmp_path),
    ):
        pass
    with local_state.only_one(tmp_path):
        pass


def test_the_home_is_made_private(tmp_path: Path) -> None:
    local_state.prepare_home(tmp_path / "a" / "home")
    assert mode(tmp_path / "a" / "home") == 0o700


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="TRITEXT_HOME"):
        local_state.prepare_home(tmp_path / "file" / "home")


def test_the_runtime_directory_is_private_short_and_one_for_each_home(tmp_path: Path) -> None:
    first, second = (local_state.make_runtime_dir(tmp_path / name) for name in ("first", "second"))
    try:
        assert first != second
        assert local_state.make_runtime_dir(tmp_path / "first") == first
        assert mode(first) == 0o700
        assert len(str(first)) <= 24
    finally:
        first.rmdir()
        second.rmdir()


def test_a_runtime_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    path = local_state.make_runtime_dir(tmp_path)
    try:
        path.chmod(0o755)
        with pytest.raises(SetupError, match="not a directory of yours alone"):
            local_state.make_runtime_dir(tmp_path)
    finally:
        path.rmdir()
