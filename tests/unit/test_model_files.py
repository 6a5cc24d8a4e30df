import json
from pathlib import Path
from typing import Any

import pytest

from deployments.model_files import DEFAULT_CONTEXT_LENGTH, ModelFiles, ModelSourceError, read_model_files

VOCABULARY = {"a": 3, "b": 4}
ADDED = [{"id": 0, "content": "<s>"}, {"id": 1, "content": "</s>"}, {"id": 2, "content": "<|endoftext|>"}]
TOKENIZER = {"model": {"vocab": VOCABULARY}, "added_tokens": ADDED}


def write(directory: Path, **files: Any) -> Path:
    """Each keyword is a file's name without .json; what is not JSON is written as it is."""
    contents = {"config": {"vocab_size": 5}, "tokenizer": TOKENIZER} | files
    for name, content in contents.items():
        if isinstance(content, str):
            (directory / name.replace("__", ".")).write_text(content, encoding="utf-8")
        else:
            (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def read(directory: Path, **files: Any) -> ModelFiles:
    return read_model_files(write(directory, **files))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 77}, 77),
        ({"n_positions": 55, "n_ctx": 44}, 55),
        ({"seq_length": 33}, 33),
        ({"max_position_embeddings": None, "n_ctx": 44}, 44),
        ({"text_config": {"max_position_embeddings": 99}}, 99),
        ({}, DEFAULT_CONTEXT_LENGTH),
    ],
)
def test_the_context_length_has_many_names(tmp_path: Path, config: dict[str, Any], length: int) -> None:
    assert read(tmp_path, config={"vocab_size": 5, **config}).context_length == length


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [4, 3]}, "config": {"vocab_size": 5, "eos_token_id": 1}}, (4, 3)),
        ({"generation_config": {"eos_token_id": 4}}, (4,)),
        ({"generation_config": {}, "config": {"vocab_size": 5, "eos_token_id": 1}}, (1,)),
        ({"generation_config": {"eos_token_id": 0}, "config": {"vocab_size": 5, "eos_token_id": 1}}, (0,)),
        ({"tokenizer_config": {"eos_token": "</s>"}}, (1,)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "special": True}}}, (1,)),
        ({"tokenizer_config": {"eos_token": "unknown"}}, ()),
        ({}, ()),
    ],
)
def test_the_end_tokens_come_from_the_first_file_that_has_them(
    tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert read(tmp_path, **files).eos_token_ids == expected


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (TOKENIZER, 2),
        ({"model": {"vocab": {**VOCABULARY, "<|endoftext|>": 7}}}, 7),
        ({"model": {"vocab": [["<unk>", 0.0], ["<|endoftext|>", -1.0]]}}, 1),
        ({"model": {"vocab": VOCABULARY}, "added_tokens": ADDED[:2]}, 0),
        ({"model": {"vocab": VOCABULARY}, "added_tokens": ADDED[1:2]}, 1),
        ({"model": {"vocab": VOCABULARY}}, None),
    ],
)
def test_a_document_starts_with_its_separator_or_bos_or_eos(
    tmp_path: Path, tokenizer: dict[str, Any], expected: int | None
) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert read(tmp_path, tokenizer=tokenizer, tokenizer_config=names).document_start_id == expected


def test_the_document_start_can_be_configured(tmp_path: Path) -> None:
    assert read_model_files(write(tmp_path), document_start="b").document_start_id == 4
    with pytest.raises(ModelSourceError, match="'missing' is not a token"):
        read_model_files(write(tmp_path), document_start="missing")


def test_a_slow_tokenizer_has_its_vocabulary_in_other_files(tmp_path: Path) -> None:
    added = {"9": {"content": "<|endoftext|>"}}
    files = read(tmp_path, tokenizer={}, vocab=VOCABULARY, tokenizer_config={"added_tokens_decoder": added})
    assert files.document_start_id == 9


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": "the template", "tokenizer_config": {"chat_template": "another"}},
        {"chat_template": {"chat_template": "the template"}},
        {"tokenizer_config": {"chat_template": "the template"}},
        {
            "tokenizer_config": {
                "chat_template": [
                    {"name": "tool_use", "template": "another"},
                    {"name": "default", "template": "the template"},
                ]
            }
        },
    ],
)
def test_the_chat_template_lies_in_one_of_three_places(tmp_path: Path, files: dict[str, Any]) -> None:
    assert read(tmp_path, **files).chat_template == "the template"


def test_a_model_need_not_have_a_chat_template(tmp_path: Path) -> None:
    assert read(tmp_path).chat_template is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {}}, "has no config.json"),
        ({"config": {"model_type": "llama"}}, "has no vocab_size"),
        ({"config": ["a"]}, "must hold a JSON object"),
        ({"tokenizer__json": "{"}, "cannot be read as JSON"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        read(tmp_path, **files)
