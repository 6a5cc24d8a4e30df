import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from deployments.config import GraphConfig, ModelConfig
from deployments.errors import EngineDead, InvalidParameter, ModelNotFound
from deployments.model_files import ModelSourceError
from deployments.model_tokenizer import TRUNCATE_TO_CONTEXT, ModelTokenizer, load_tokenizer
from deployments.tokenizer import TokenizerNode
from deployments.types import (
    ChatMessage,
    ChatPrompt,
    EncodeRequest,
    EncodeResult,
    Prompt,
    PromptStart,
    TextPrompt,
    TokenPrompt,
)
from tests.factories import (
    CHAT_TEMPLATE,
    END_OF_TEXT_ID,
    IM_START_ID,
    make_byte_fallback_tokenizer,
    make_tokenizer,
)

VOCAB_SIZE = 400
CONTEXT_LENGTH = 64
USER = (ChatMessage("user", "the sea"),)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a model without its weights; every text begins with `<|endoftext|>` by default."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_OF_TEXT_ID)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (directory / "model.safetensors").touch()
    return directory


def make_node(directory: Path, **model: Any) -> TokenizerNode:
    return TokenizerNode(GraphConfig(models=(ModelConfig(id="tiny", source=str(directory), **model),)))


@pytest.fixture
def node(model_dir: Path) -> TokenizerNode:
    return make_node(model_dir)


async def encode(node: TokenizerNode, *prompts: Prompt, **options: Any) -> EncodeResult:
    return await node.encode(EncodeRequest("tiny", prompts, **options))


async def ids(node: TokenizerNode, prompt: Prompt, **options: Any) -> tuple[int, ...]:
    return (await encode(node, prompt, **options)).prompt_token_ids[0]


def plain(text: str) -> tuple[int, ...]:
    return tuple(make_tokenizer().encode(text).ids)


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (PromptStart.DEFAULT, (END_OF_TEXT_ID,)),
        (PromptStart.PLAIN, ()),
        (PromptStart.DOCUMENT, (END_OF_TEXT_ID,)),
    ],
)
async def test_a_text_begins_as_asked(node: TokenizerNode, start: PromptStart, first: tuple[int, ...]) -> None:
    text = "the sea shells and a little house"
    assert await ids(node, TextPrompt(text, start)) == first + plain(text)


async def test_a_document_may_be_empty(node: TokenizerNode) -> None:
    assert await ids(node, TextPrompt("", PromptStart.DOCUMENT)) == (END_OF_TEXT_ID,)


async def test_the_document_start_is_configurable(model_dir: Path) -> None:
    node = make_node(model_dir, document_start="<|im_start|>")
    assert await ids(node, TextPrompt("", PromptStart.DOCUMENT)) == (IM_START_ID,)


async def test_ids_are_used_as_they_are(node: TokenizerNode) -> None:
    assert await ids(node, TokenPrompt((5, VOCAB_SIZE - 1, 0))) == (5, VOCAB_SIZE - 1, 0)


async def test_messages_are_rendered_and_get_no_other_special_tokens(node: TokenizerNode) -> None:
    expected = plain("<|im_start|>user\nthe sea<|im_end|>\n<|im_start|>assistant\n")
    assert expected[0] == IM_START_ID
    assert await ids(node, ChatPrompt(USER)) == expected


async def test_every_prompt_is_answered_in_order_with_the_limits_of_the_model(node: TokenizerNode) -> None:
    result = await encode(node, TokenPrompt((7,)), TextPrompt("a", PromptStart.PLAIN), TokenPrompt((8, 9)))
    assert result.prompt_token_ids == ((7,), plain("a"), (8, 9))
    assert (result.context_length, result.vocab_size, result.bad_words_token_ids) == (CONTEXT_LENGTH, VOCAB_SIZE, ())


@pytest.mark.parametrize(("configured", "expected"), [(None, 64), (32, 32), (1000, 64)])
async def test_the_context_is_the_smaller_of_what_is_configured_and_what_the_model_has(
    model_dir: Path, configured: int | None, expected: int
) -> None:
    result = await encode(make_node(model_dir, context_length=configured), TokenPrompt((1,)))
    assert result.context_length == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (TextPrompt(""), "prompt"),
        (TextPrompt("", PromptStart.PLAIN), "prompt"),
        (TextPrompt("a\ud800"), "prompt"),
        (TokenPrompt(()), "prompt"),
        (TokenPrompt((1, VOCAB_SIZE)), "prompt"),
        (TokenPrompt((-1,)), "prompt"),
        (TokenPrompt((2**70,)), "prompt"),
        (ChatPrompt(()), "messages"),
        (ChatPrompt((ChatMessage("user", "\udfff"),)), "messages"),
    ],
)
async def test_what_is_no_prompt_is_refused(node: TokenizerNode, prompt: Prompt, param: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        await encode(node, TokenPrompt((1,)), prompt)
    assert error.value.param == param


async def test_messages_need_a_chat_template(model_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(InvalidParameter, match="no chat template") as error:
        await encode(make_node(directory), ChatPrompt(USER))
    assert error.value.param == "messages"


@pytest.mark.parametrize(("kept", "expected"), [(1, (4,)), (3, (2, 3, 4)), (4, (1, 2, 3, 4)), (9, (1, 2, 3, 4))])
async def test_truncation_keeps_the_last_tokens(node: TokenizerNode, kept: int, expected: tuple[int, ...]) -> None:
    assert await ids(node, TokenPrompt((1, 2, 3, 4)), truncate_to=kept) == expected


async def test_truncation_to_the_context_leaves_room_for_one_token(node: TokenizerNode) -> None:
    prompt = TokenPrompt(tuple(range(100)))
    assert await ids(node, prompt, truncate_to=TRUNCATE_TO_CONTEXT) == tuple(range(100 - CONTEXT_LENGTH + 1, 100))


@pytest.mark.parametrize("kept", [0, -2])
async def test_truncation_to_nothing_is_refused(node: TokenizerNode, kept: int) -> None:
    with pytest.raises(InvalidParameter) as error:
        await encode(node, TokenPrompt((1, 2)), truncate_to=kept)
    assert error.value.param == "truncate_prompt_tokens"


async def spellings(node: TokenizerNode, *words: str) -> tuple[tuple[int, ...], ...]:
    return (await encode(node, TokenPrompt((1,)), bad_words=words)).bad_words_token_ids


@pytest.mark.parametrize("word", ["the", " the", "  the"])
async def test_a_bad_word_is_spelled_with_and_without_a_space(node: TokenizerNode, word: str) -> None:
    assert await spellings(node, word) == (plain("the"), plain(" the"))


async def test_spellings_are_listed_once_and_in_order(node: TokenizerNode) -> None:
    assert await spellings(node, "a", "the", " a") == (plain("a"), plain(" a"), plain("the"), plain(" the"))


async def test_a_bad_word_is_also_spelled_within_a_word(tmp_path: Path, model_dir: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    tokenizer = make_byte_fallback_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    found = await spellings(make_node(directory), "the")
    assert tuple(tokenizer.encode("the").ids) in found
    assert tuple(map(tokenizer.token_to_id, ("t", "he"))) in found


async def test_an_empty_bad_word_is_refused(node: TokenizerNode) -> None:
    with pytest.raises(InvalidParameter) as error:
        await spellings(node, "the", "")
    assert error.value.param == "bad_words"


async def test_decoding_gives_the_text_back(node: TokenizerNode) -> None:
    token_ids = (*plain("Grüße 😀"), END_OF_TEXT_ID)
    assert await node.decode("tiny", token_ids) == "Grüße 😀<|endoftext|>"
    assert await node.decode("tiny", token_ids, skip_special_tokens=True) == "Grüße 😀"
    assert await node.decode("tiny", ()) == ""


async def test_tokens_have_a_text_each(node: TokenizerNode) -> None:
    texts = await node.token_texts("tiny", (*plain(" the"), END_OF_TEXT_ID, VOCAB_SIZE - 1))
    assert texts == (" the", "<|endoftext|>", f"token_id:{VOCAB_SIZE - 1}")


@pytest.mark.parametrize("token_ids", [(VOCAB_SIZE,), (-1,), (2**70,)])
async def test_ids_outside_the_vocabulary_have_no_text(node: TokenizerNode, token_ids: Sequence[int]) -> None:
    for call in (node.decode, node.token_texts):
        with pytest.raises(InvalidParameter) as error:
            await call("tiny", tuple(token_ids))
        assert error.value.param == "tokens"


async def test_an_unknown_model_is_not_found(node: TokenizerNode) -> None:
    for call in (node.decode("other", ()), node.token_texts("other", ()), node.encode(EncodeRequest("other", ()))):
        with pytest.raises(ModelNotFound):
            await call


async def test_it_is_healthy_once_started(node: TokenizerNode) -> None:
    with pytest.raises(EngineDead, match="tiny"):
        await node.check_health()
    await node.start()
    await node.check_health()


async def test_a_model_that_cannot_be_found_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="does not exist"):
        await make_node(tmp_path / "nowhere").start()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [("tokenizer.json", "{}", "cannot be loaded"), ("chat_template.jinja", "{% if %}", "malformed")],
)
async def test_unusable_files_fail_the_start(
    model_dir: Path, tmp_path: Path, file: str, content: str, message: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    (directory / file).write_text(content, encoding="utf-8")
    with pytest.raises(ModelSourceError, match=message):
        await make_node(directory).start()


@pytest.mark.parametrize(
    ("prompt", "is_long"),
    [
        (TextPrompt("a " * 10), False),
        (TextPrompt("a " * 10_000), True),
        (TokenPrompt((1,) * 10_000), True),
        (ChatPrompt((ChatMessage("user", "a " * 10_000),)), True),
    ],
)
async def test_long_work_leaves_the_event_loop_free(
    node: TokenizerNode, monkeypatch: pytest.MonkeyPatch, prompt: Prompt, is_long: bool
) -> None:
    await node.start()
    threads = []
    original = ModelTokenizer.encode

    def spy(self: Any, *args: Any, **options: Any) -> tuple[int, ...]:
        threads.append(threading.current_thread())
        return original(self, *args, **options)

    monkeypatch.setattr(ModelTokenizer, "encode", spy)
    await encode(node, prompt)
    assert (threads[0] is not threading.main_thread()) is is_long


def test_a_slow_tokenizer_is_converted(tmp_path: Path) -> None:
    model = json.loads(make_tokenizer().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    assert tuple(load_tokenizer(tmp_path).encode("the sea shells").ids) == plain("the sea shells")
