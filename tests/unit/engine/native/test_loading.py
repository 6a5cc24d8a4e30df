"""From a model directory to a runner: what is prepared, what is reused, what is refused."""

import json
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
from deployments.engine.native.loading import load_native_runner, needs_preparing, prepare_directory, unsupported
from deployments.model_files import ModelSourceError

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
    assert [line for line in said if "quantising" in line] == said[-1:]
    assert len([path for path in (home / "models").iterdir() if path.is_dir()]) == 1


def test_changed_weights_are_quantised_again(model: Path, home: Path) -> None:
    tokens = token_ids(1, 20, 101)
    before = logits_in_one_step(load_native_runner(model, CONFIG, home), tokens)

    write_model(model, seed=1)

    assert not torch.equal(logits_in_one_step(load_native_runner(model, CONFIG, home), tokens), before)


def test_a_prepared_directory_needs_nothing_else(model: Path, home: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"

    prepare_directory(model, prepared)

    assert sorted(file.name for file in prepared.iterdir()) == ["config.json", "int8.safetensors", "tokenizer.json"]
    tokens = token_ids(1, 20, 101)
    expected = logits_in_one_step(load_native_runner(model, CONFIG, home), tokens)
    assert torch.equal(logits_in_one_step(load_native_runner(prepared, CONFIG, tmp_path / "home"), tokens), expected)


def test_weights_of_another_version_are_refused(
    model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tmp_path / "prepared"
    prepare_directory(model, prepared)
    monkeypatch.setattr(loading, "FORMAT", "of-tomorrow")

    with pytest.raises(Unsupported, match="another version"):
        load_native_runner(prepared, CONFIG, home)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"vocab_size": 200}, {"intermediate_size": 320}])
def test_prepared_weights_that_are_not_those_of_the_config_are_refused(
    model: Path, home: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    prepared = tmp_path / "prepared"
    prepare_directory(model, prepared)
    config = json.loads((prepared / "config.json").read_text())
    (prepared / "config.json").write_text(json.dumps(config | change))

    with pytest.raises(ValueError, match="see the tensor"):
        load_native_runner(prepared, CONFIG, home)


def test_a_prepared_directory_is_not_written_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")

    with pytest.raises(FileExistsError, match="no empty directory"):
        prepare_directory(model, tmp_path)

    assert (tmp_path / "letter").read_text() == "dear"


def test_a_prepared_directory_is_written_whole_or_not_at_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(loading, "write_quantized", fail)
    with pytest.raises(OSError, match="full"):
        prepare_directory(model, tmp_path / "new" / "prepared")

    assert list((tmp_path / "new").iterdir()) == []


def test_preparing_is_needed_once(model: Path, home: Path) -> None:
    assert needs_preparing(model, CONFIG, home)

    loading.prepare(model, CONFIG, home)

    assert not needs_preparing(model, CONFIG, home)
    assert needs_preparing(write_model(model, seed=1), CONFIG, home)


@pytest.mark.parametrize("change", [{"dtype": "float32"}, {"device": "cuda"}, {"block_size": 24}])
def test_what_the_kernels_never_run_needs_no_preparing(model: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    assert not needs_preparing(model, EngineConfig(**{**CONFIG.model_dump(), **change}), tmp_path)


def test_a_machine_without_the_instructions_needs_no_preparing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "missing_on_this_machine", lambda: "the processor has no avx512_vnni")

    assert not needs_preparing(model, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "llama"}', "has no num_attention_heads"),
        ('{"model_type": "llama", "num_attention_heads": "many", "hidden_size": 64}', "cannot be understood"),
    ],
)
@pytest.mark.usefixtures("kernel_cache")
def test_a_malformed_config_is_told_in_a_sentence(model: Path, tmp_path: Path, content: str, words: str) -> None:
    (model / "config.json").write_text(content)

    with pytest.raises(ModelSourceError, match=words):
        needs_preparing(model, CONFIG, tmp_path)


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
