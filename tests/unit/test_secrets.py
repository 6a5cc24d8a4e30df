"""Where the pepper comes from, and how its file is made."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.config import GraphConfig, ModelConfig
from serve_app.config import AppConfig, Secrets, SetupError

PEPPER = "0123456789abcdef0123456789abcdef"
CONFIG = AppConfig(graph=GraphConfig(models=(ModelConfig(id="m", source="nowhere"),)))


def test_without_a_pepper_the_message_says_what_to_do(home: Path) -> None:
    with pytest.raises(SetupError, match="TRITEXT_KEY_PEPPER") as missing:
        Secrets.load()
    assert str(home / "key_pepper") in str(missing.value)


def test_the_environment_names_the_pepper(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITEXT_KEY_PEPPER", PEPPER)
    secrets = Secrets.load(create=True)
    assert secrets.pepper() == PEPPER.encode()
    assert secrets.home == home
    assert not (home / "key_pepper").exists()


def test_a_created_pepper_is_kept(home: Path) -> None:
    first = Secrets.load(create=True).pepper()
    assert len(first) == 64
    assert Secrets.load(create=True).pepper() == Secrets.load().pepper() == first
    assert [path.name for path in home.iterdir()] == ["key_pepper"]


def test_only_its_owner_can_read_the_pepper(home: Path) -> None:
    Secrets.load(create=True)
    assert stat.S_IMODE((home / "key_pepper").stat().st_mode) == 0o600


def test_processes_that_create_the_pepper_at_once_agree() -> None:
    with ThreadPoolExecutor(8) as pool:
        peppers = set(pool.map(lambda _: Secrets.load(create=True).pepper(), range(32)))
    assert len(peppers) == 1


def test_a_short_pepper_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITEXT_KEY_PEPPER", "short-pepper")
    with pytest.raises(ValidationError, match="at least 32") as refused:
        Secrets.load()
    assert "short-pepper" not in str(refused.value)


def test_the_pepper_is_not_shown() -> None:
    secrets = Secrets.load(create=True)
    assert secrets.pepper().decode() not in repr(secrets) + str(secrets) + secrets.model_dump_json()


def test_the_default_database_lies_in_the_home_directory(home: Path) -> None:
    secrets = Secrets.load(create=True)
    assert secrets.database_url(CONFIG) == f"sqlite:///{home}/tritext.db"
    assert secrets.database_url(CONFIG.model_copy(update={"database_url": "sqlite:////x.db"})) == "sqlite:////x.db"


def test_the_environment_names_the_database_and_goes_before_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = CONFIG.model_copy(update={"database_url": "postgresql://configured/tritext"})
    assert Secrets.load(create=True).database_url(configured) == "postgresql://configured/tritext"
    monkeypatch.setenv("TRITEXT_DATABASE_URL", "postgresql://user:secret-word@db/tritext")
    secrets = Secrets.load()
    assert secrets.database_url(configured) == "postgresql://user:secret-word@db/tritext"
    assert "secret-word" not in repr(secrets) + secrets.model_dump_json()
