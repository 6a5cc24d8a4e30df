"""The tokenizer that a GGUF file describes: byte-level BPE with the pre-tokenizer of the SmolLM family."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from deployments.model_files import ModelSourceError

CONTROL_TOKEN_TYPE = 3


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata. Raises ModelSourceError where it is of a kind that is not known.

    SmolLM splits every digit off before the splitting of GPT-2, which transformers' own reading of GGUF forgets. Its
    vocabulary lacks the tokens of 21 byte values, all of them rare; as in the original, without an unknown token,
    characters that need them vanish from the text.
    """
    kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ModelSourceError(f"the GGUF file has a tokenizer of the kind {kind}; known is ('gpt2', 'smollm')")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type == CONTROL_TOKEN_TYPE
        ]
    )
    return tokenizer
