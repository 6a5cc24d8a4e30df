"""What the files of a model in Hugging Face layout say about it: read as JSON, without importing any model library."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTEXT_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
DEFAULT_CONTEXT_LENGTH = 2048
TEMPLATE_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
DOCUMENT_SEPARATOR = "<|endoftext|>"


class ModelSourceError(ValueError):
    """A model's files are missing, incomplete or unreadable; the message says which, in a sentence for a person."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory and what its files say.

    context_length: the most tokens, prompt and output together, that the model was made for.
    vocab_size: the number of logits, so ids run from 0 to vocab_size - 1; the tokenizer may know fewer.
    eos_token_ids: the tokens that end an answer; document_start_id: the token that begins a document, if it has one.
    special_tokens: text of `bos_token`, `eos_token` and the like, as the chat template wants them.
    """

    directory: Path
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    document_start_id: int | None
    chat_template: str | None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def read_model_files(directory: Path, *, document_start: str | None = None) -> ModelFiles:
    """Read the files in `directory`. `document_start` names the token that begins a document, instead of looking it up.

    Raises ModelSourceError: a file is missing or malformed, or `document_start` is not in the vocabulary.
    """
    config = _read_config(directory)
    generation = read_json(directory / "generation_config.json")
    tokenizer_config = read_json(directory / "tokenizer_config.json")
    vocabulary = _read_vocabulary(directory, tokenizer_config)
    special_tokens = _special_tokens(directory, tokenizer_config)

    eos_token_ids = (
        _token_ids(generation.get("eos_token_id"))
        or _token_ids(config.get("eos_token_id"))
        or _known([special_tokens.get("eos_token")], vocabulary)
    )
    bos_token_ids = (
        _token_ids(generation.get("bos_token_id"))
        or _token_ids(config.get("bos_token_id"))
        or _known([special_tokens.get("bos_token")], vocabulary)
    )
    if document_start is not None and document_start not in vocabulary:
        raise ModelSourceError(f"the document start {document_start!r} is not a token of the model in {directory}")
    document_starts = _known([document_start, DOCUMENT_SEPARATOR], vocabulary) + bos_token_ids + eos_token_ids
    return ModelFiles(
        directory=directory,
        context_length=_context_length(config),
        vocab_size=_vocab_size(config, directory),
        eos_token_ids=eos_token_ids,
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        document_start_id=document_starts[0] if document_starts else None,
        chat_template=_chat_template(directory, tokenizer_config),
        special_tokens=special_tokens,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, empty where there is no file. Raises ModelSourceError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelSourceError(f"{path} must hold a JSON object")
    return content


def _read_config(directory: Path) -> dict[str, Any]:
    """config.json; where the language model is one part of several, its part over the whole."""
    config = read_json(directory / "config.json")
    if not config:
        raise ModelSourceError(f"the model directory {directory} has no config.json")
    text_config = config.get("text_config")
    return {**config, **text_config} if isinstance(text_config, dict) else config


def _read_vocabulary(directory: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, int]:
    """Token text to id, from tokenizer.json, or what tokenizer_config.json and vocab.json tell where there is none."""
    tokenizer = read_json(directory / "tokenizer.json")
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else read_json(directory / "vocab.json")
    vocabulary: dict[str, int] = {}
    if isinstance(vocab, dict):
        vocabulary.update(vocab)
    elif isinstance(vocab, list):
        vocabulary.update((piece[0], token_id) for token_id, piece in enumerate(vocab))
    for token_id, token in (tokenizer_config.get("added_tokens_decoder") or {}).items():
        vocabulary[token["content"]] = int(token_id)
    for token in tokenizer.get("added_tokens") or []:
        vocabulary[token["content"]] = token["id"]
    return vocabulary


def _special_tokens(directory: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens; each stands in the files as text or as an object with `content`."""
    named = {**read_json(directory / "special_tokens_map.json"), **tokenizer_config}
    tokens = {}
    for name in TEMPLATE_TOKEN_NAMES:
        token = named.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template: a file of its own, or a field; several are stored as a list of `{name, template}`."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(directory / "chat_template.json").get("chat_template", tokenizer_config.get("chat_template"))
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _token_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and item >= 0)


def _known(tokens: Iterable[str | None], vocabulary: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(vocabulary[token] for token in tokens if token is not None and token in vocabulary)


def _context_length(config: Mapping[str, Any]) -> int:
    for key in CONTEXT_LENGTH_KEYS:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_CONTEXT_LENGTH


def _vocab_size(config: Mapping[str, Any], directory: Path) -> int:
    value = config.get("vocab_size")
    if not isinstance(value, int) or value < 1:
        raise ModelSourceError(f"{directory / 'config.json'} has no vocab_size")
    return value
