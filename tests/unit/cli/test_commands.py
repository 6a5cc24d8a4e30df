"""The command line: keys are made, listed and revoked; what goes wrong is told in a sentence."""

import json
from pathlib import Path

import pytest

from deployments.engine.native import loading
from serve_app import cli
from serve_app.config import AppConfig, Secrets
from serve_app.launcher.serve_file import read_serve_file
from serve_app.stores import schema
from serve_app.stores.database import open_database
from serve_app.stores.keys import SqlKeyStore
from serve_app.use_cases.keys import Keys
from tests.factories import make_tiny_model
from tests.unit.cli.conftest import Command


async def account_of(key: str, config: Path) -> str:
    secrets = Secrets.load()
    app: AppConfig = read_serve_file(config, http_port=1).config
    async with open_database(secrets.database_url(app)) as database:
        return (await Keys(SqlKeyStore(database), secrets.pepper()).authenticate(key)).account


def test_a_created_key_stands_alone_on_standard_output(tritext: Command) -> None:
    result = tritext("keys", "create")
    assert result.status == 0
    assert result.out.startswith("tt_")
    assert len(result.out.splitlines()) == 1
    assert "not shown again" in result.err


def test_a_created_key_works(tritext: Command, config: Path) -> None:
    import asyncio

    created = json.loads(tritext("keys", "create", "--name", "laptop", "--json").out)
    assert asyncio.run(account_of(created["key"], config)) == "default"
    assert created["name"] == "laptop"
    assert created["expires_at"] is None


def test_listing_shows_every_key_and_no_secret(tritext: Command) -> None:
    created = [json.loads(tritext("keys", "create", "--name", name, "--json").out) for name in ("one", "two")]
    everything = tritext("keys", "list")
    for key in created:
        assert key["id"] in everything.out
        assert key["key"] not in everything.out
    assert [row["name"] for row in json.loads(tritext("keys", "list", "--json").out)] == ["one", "two"]
    assert json.loads(tritext("keys", "list", "--account", "acme", "--json").out) == []


def test_a_revoked_key_is_listed_as_revoked(tritext: Command) -> None:
    key_id = json.loads(tritext("keys", "create", "--json").out)["id"]
    assert tritext("keys", "revoke", key_id).status == 0
    assert json.loads(tritext("keys", "list", "--json").out)[0]["revoked_at"] is not None
    assert "revoked" in tritext("keys", "list").out


def test_an_expiring_key_says_when(tritext: Command) -> None:
    assert json.loads(tritext("keys", "create", "--expires-in-days", "1", "--json").out)["expires_at"] is not None
    assert "expires" in tritext("keys", "list").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("keys", "revoke", "nothing"), "no key with the id"),
        (("keys", "create", "--name", ""), "name must have"),
        (("keys", "create", "--expires-in-days", "0"), "in the future"),
        (("model", "prepare"), "does not exist"),
    ],
)
def test_what_goes_wrong_is_told_in_a_sentence(tritext: Command, arguments: tuple[str, ...], words: str) -> None:
    Secrets.load(create=True)
    result = tritext(*arguments)
    assert result.status == 1
    assert result.out == ""
    assert words in result.err
    assert len(result.err.splitlines()) == 1


def test_listing_before_anything_was_started_says_what_is_missing(tritext: Command) -> None:
    result = tritext("keys", "list")
    assert result.status == 1
    assert "there is no key pepper" in result.err


def test_a_missing_configuration_is_named(tritext: Command, tmp_path: Path) -> None:
    result = tritext("keys", "create", config=tmp_path / "missing.yaml")
    assert result.status == 1
    assert "missing.yaml" in result.err


def test_a_database_that_is_not_supported_is_refused(tritext: Command, config: Path) -> None:
    config.write_text(config.read_text().replace("args: {", "args: {database_url: 'mysql://db/tritext', "))
    result = tritext("keys", "create")
    assert result.status == 1
    assert "not supported" in result.err


def test_serve_starts_the_launcher_and_ends_with_its_status(
    tritext: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, object]] = []

    def launch(**arguments: object) -> int:
        calls.append(arguments)
        return 3

    monkeypatch.setattr(cli, "run_service", launch)
    assert tritext("serve", "--port", "8123", "--profile", "plain").status == 3
    assert calls == [{"port": 8123, "config": config, "profile": "plain"}]


def test_migrating_says_what_the_schema_is(tritext: Command) -> None:
    assert tritext("database", "migrate").out == f"The schema is {schema.VERSION} now.\n"
    assert tritext("database", "migrate").out == f"The schema is {schema.VERSION} already.\n"


def test_preparing_a_directory_takes_one_model(tritext: Command, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("}]}", "}, {id: other, source: /nowhere}]}"))
    result = tritext("model", "prepare", "--output", str(tmp_path / "new"))
    assert result.status == 1
    assert "name one with --source" in result.err


def test_a_model_is_prepared_into_a_directory_of_its_own(
    tritext: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tiny_model(tmp_path / "tiny")

    def write(_source: Path, target: Path, *_: object) -> None:
        target.write_bytes(b"weights")

    monkeypatch.setattr(loading, "write_quantized", write)
    result = tritext("model", "prepare", "--source", str(source), "--output", str(tmp_path / "new"))
    assert result.out == f"tiny  {tmp_path / 'new'}\n"
    assert (tmp_path / "new" / "int8.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "words"), [("{", "cannot be read as JSON"), ('{"model_type": "gpt2"}', "cannot be prepared")]
)
def test_why_a_directory_cannot_be_prepared_is_told_in_a_sentence(
    tritext: Command, tmp_path: Path, content: str, words: str
) -> None:
    source = make_tiny_model(tmp_path / "tiny")
    (source / "config.json").write_text(content)
    result = tritext("model", "prepare", "--source", str(source), "--output", str(tmp_path / "new"))
    assert result.status == 1
    assert words in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert not (tmp_path / "new").exists()


def test_an_own_model_with_a_malformed_config_is_told_in_a_sentence(
    tritext: Command, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "missing_on_this_machine", lambda: None)
    source = make_tiny_model(tmp_path / "tiny")
    (source / "config.json").write_text("[")
    config.write_text(config.read_text().replace("/nowhere", str(source)))
    result = tritext("model", "prepare")
    assert result.status == 1
    assert "cannot be read as JSON" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
