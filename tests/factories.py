"""Tiny random models in Hugging Face layout, made on the spot, so that tests need no download."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Architecture = Literal["llama", "gpt2", "qwen2", "mistral", "gemma2"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT_ID, IM_START_ID, IM_END_ID = range(3)
EOS_TOKEN_IDS = (IM_END_ID, END_OF_TEXT_ID)
CONTEXT_LENGTH = 512
SLIDING_WINDOW = 24

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a little house by the sea.",
    "She sells sea shells by the sea shore; he reads three hundred pages every night before he sleeps.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))",
    "Grüße aus München, où est la gare? 今日は良い天気ですね。 Привет, мир! 😀🎉",
)


def make_tiny_model(
    directory: Path,
    *,
    vocab_size: int = 384,
    dtype: Literal["float32", "float64", "bfloat16"] = "float32",
    architecture: Architecture = "llama",
    seed: int = 0,
) -> Path:
    """Write a model of two layers with random weights, its tokenizer and a chat template; returns `directory`.

    The context holds 512 tokens. vocab_size is at least 259; above about 460 the last ids have no text, as the padding
    of large vocabularies. Ids 0 to 2 are SPECIAL_TOKENS; `<|im_end|>` and `<|endoftext|>` end an answer. The
    weights are spread so widely that the likeliest token is clear. mistral and gemma2 have a sliding window of 24
    tokens; gemma2 also caps its logits.
    """
    # Imported here, so that tests which want a tokenizer only do not wait seconds for these two.
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(architecture, vocab_size))  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=END_OF_TEXT_ID, eos_token_id=list(EOS_TOKEN_IDS), pad_token_id=END_OF_TEXT_ID
    )
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def make_tokenizer(vocab_size: int = 384) -> Tokenizer:
    """A byte-level BPE with every byte, SPECIAL_TOKENS and as many merges as CORPUS gives, about 200, and fit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_byte_fallback_tokenizer() -> Tokenizer:
    """A tokenizer as Llama 2 has it: spaces as U+2581, one put before every text, unknown characters as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?é"]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "a"), ("i", "n")]
    pieces += letters + [left + right for left, right in merges]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def make_config(architecture: Architecture, vocab_size: int) -> "PreTrainedConfig":
    """The configuration of a model of two layers."""
    from transformers import Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    tokens: dict[str, Any] = {
        "vocab_size": vocab_size,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": list(EOS_TOKEN_IDS),
        "pad_token_id": END_OF_TEXT_ID,
    }
    if architecture == "gpt2":
        return GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT_LENGTH, initializer_range=0.2, **tokens)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.2,
        **tokens,
    }
    match architecture:
        case "llama":
            return LlamaConfig(tie_word_embeddings=True, **shape)
        case "qwen2":
            return Qwen2Config(tie_word_embeddings=True, **shape)
        case "mistral":
            return MistralConfig(sliding_window=SLIDING_WINDOW, **shape)
        case "gemma2":
            return Gemma2Config(
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=SLIDING_WINDOW,
                attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0,
                tie_word_embeddings=False,
                **shape,
            )
    raise ValueError(f"no such architecture: {architecture}")
