"""What a start prepares before Ray runs, and when it need not."""

from pathlib import Path

import pytest

from deployments.model_files import ModelSourceError
from serve_app.config import AppConfig
from serve_app.launcher import models
from serve_app.launcher.models import prepare_models
from serve_app.launcher.serve_file import ServeFile
from tests.factories import make_tiny_model


def serve_file(source: Path, **engine: object) -> ServeFile:
    graph = {"models": [{"id": "m", "source": str(source), "engine": engine}]}
    return ServeFile(Path("serve.yaml"), {}, "tritext", AppConfig.model_validate({"graph": graph}))


def test_a_model_that_runs_in_float32_starts_no_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "subprocess", None)  # it would fail to start anything
    prepare_models(serve_file(make_tiny_model(tmp_path / "tiny"), dtype="float32"), tmp_path, lambda _: None)


def test_a_malformed_config_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "subprocess", None)  # it would fail to start anything
    monkeypatch.setattr("deployments.engine.native.loading.missing_on_this_machine", lambda: None)
    directory = make_tiny_model(tmp_path / "tiny")
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelSourceError, match="cannot be read as JSON"):
        prepare_models(serve_file(directory), tmp_path, lambda _: None)
