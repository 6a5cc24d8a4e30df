"""From a model directory to a runner: what is prepared, what is reused, what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from deployments.config import EngineConfig
from deployments.engine.native import loading
from deployments.engine.native.architecture import Unsupported
from deployments.engine.native.loading import load_native_runner, prepare_directory, unsupported

from .models import logits_in_one_step, token_ids, write_model

CONFIG = EngineConfig(num_threads=1, kv_cache_bytes=1024 * 1024)


@pytest.fixture
def home(tmp_path: Path, kernel_cache: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "kernels").symlink_to(kernel_cache)
    return home


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_model(tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "of": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_weights_are_quantised_once(model: Path, home: Path) -> None:
    said: list[str] = []

    first = load_native_runner(model, CONFIG, home, report=said.append)
    second = load_native_runner(model, CONFIG, home, report=said.append)

    tokens = token_ids(1, 20, 101)
    assert torch.equal(logits_in_one_step(first, tokens), logits_in_one_step(second, tokens))
    assert len(said) == 1
    assert len([path for path in (home / "models").iterdir() if path.is_dir()]) == 1


def test_changed_weights_are_quantised_again(model: Path, home: Path) -> None:
    tokens = token_ids(1, 20, 101)
    before = logits_in_one_step(load_native_runner(model, CONFIG, home), tokens)

    write_model(model, seed=1)

    assert not torch.equal(logits_in_one_step(load_native_runner(model, CONFIG, home), tokens), before)


def test_a_prepared_directory_needs_nothing_else(model: Path, home: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()

    prepare_directory(model, prepared)

    assert sorted(file.name for file in prepared.iterdir()) == ["config.json", "int8.safetensors", "tokenizer.json"]
    tokens = token_ids(1, 20, 101)
    expected = logits_in_one_step(load_native_runner(model, CONFIG, home), tokens)
    assert torch.equal(logits_in_one_step(load_native_runner(prepared, CONFIG, tmp_path / "home"), tokens), expected)


def test_weights_of_another_version_are_refused(
    model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    prepare_directory(model, prepared)
    monkeypatch.setattr(loading, "FORMAT", "of-tomorrow")

    with pytest.raises(Unsupported, match="another version"):
        load_native_runner(prepared, CONFIG, home)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"dtype": "float32"}, "float32"), ({"device": "cuda"}, "GPU"), ({"block_size": 24}, "24")],
)
def test_other_configurations_are_refused(model: Path, home: Path, change: dict[str, Any], reason: str) -> None:
    config = EngineConfig(**{**CONFIG.model_dump(), **change})

    assert reason in str(unsupported(model, config))
    with pytest.raises(Unsupported, match=reason):
        load_native_runner(model, config, home)


@pytest.mark.usefixtures("kernel_cache")
def test_a_supported_model_has_no_reason(model: Path) -> None:
    assert unsupported(model, CONFIG) is None


def test_a_start_imports_no_transformers() -> None:
    code = "import sys, deployments.engine.native.loading; sys.exit('transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
