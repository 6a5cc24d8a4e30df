"""What the sampling parameters of a request mean: the rules between them, and the canonical parameters. Pure."""

import re
from collections.abc import Mapping
from typing import Any

from deployments.errors import InvalidParameter
from deployments.types import SamplingParams
from serve_app.config import TotalGPTConfig
from serve_app.dialects.totalgpt.fields import MAX_INT32, SamplingFields

_GREEDY_BELOW = 1e-5
_LOWEST_SAMPLED_TEMPERATURE = 0.01
_TOKEN_ID = re.compile(r"[0-9]{1,10}")


def check_sampling(
    fields: SamplingFields, body: Mapping[str, Any], config: TotalGPTConfig, *, max_tokens: int | None
) -> None:
    """What no single field can tell. `body` is what `fields` was parsed from. Raises InvalidParameter."""
    num_sequences = fields.best_of if fields.best_of is not None else fields.n
    _require(fields.n <= config.max_n, "n", f"must be at most {config.max_n}")
    _require(num_sequences <= config.max_n, "best_of", f"must be at most {config.max_n}")
    _require(num_sequences >= fields.n, "best_of", "must be at least n")
    _require(
        not fields.stream or num_sequences == fields.n, "best_of", "must equal n when streaming: the best come last"
    )
    _require(
        max_tokens is None or fields.min_tokens <= max_tokens, "min_tokens", "must be at most the number of max_tokens"
    )
    _require(fields.detokenize or not fields.stop, "detokenize", "must be true where stop strings are given")
    _require(
        fields.spaces_between_special_tokens or fields.skip_special_tokens,
        "spaces_between_special_tokens",
        "must be true where special tokens are shown: the tokenizer's own spacing is the only one supported",
    )
    _require(fields.truncate_prompt_tokens != 0, "truncate_prompt_tokens", "must be -1 or at least 1")
    check_num_logprobs(fields.prompt_logprobs, "prompt_logprobs", config)
    _require(fields.prompt_logprobs is None or not fields.stream, "prompt_logprobs", "cannot be streamed")
    # An empty object asks for nothing; one that names an option is meant for a stream, whatever the option's value.
    _require(fields.stream or not body.get("stream_options"), "stream_options", "may be given only with stream: true")


def check_num_logprobs(value: int | None, name: str, config: TotalGPTConfig) -> None:
    """Raises InvalidParameter. -1 stands for the whole vocabulary."""
    _require(value is None or value <= config.max_logprobs, name, f"must be at most {config.max_logprobs}, or -1")


def to_sampling_params(fields: SamplingFields, *, logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
    """The canonical parameters, without what only admission knows. Raises InvalidParameter."""
    is_greedy = fields.temperature < _GREEDY_BELOW
    return SamplingParams(
        min_tokens=fields.min_tokens,
        temperature=0.0 if is_greedy else max(fields.temperature, _LOWEST_SAMPLED_TEMPERATURE),
        top_p=1.0 if is_greedy else fields.top_p,
        top_k=0 if is_greedy else max(fields.top_k, 0),
        min_p=0.0 if is_greedy else fields.min_p,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        repetition_penalty=fields.repetition_penalty,
        stop=tuple(fields.stop),
        include_stop_str_in_output=fields.include_stop_str_in_output,
        stop_token_ids=tuple(fields.stop_token_ids),
        logit_bias=to_logit_bias(fields.logit_bias),
        allowed_token_ids=None if fields.allowed_token_ids is None else tuple(fields.allowed_token_ids),
        ignore_eos=fields.ignore_eos,
        skip_special_tokens=fields.skip_special_tokens,
        detokenize=fields.detokenize,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def to_seed(seed: int | None) -> int | None:
    """-1 means the same as no seed."""
    return None if seed == -1 else seed


def to_logit_bias(bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Token ids and their biases, clamped to [-100, 100]. Raises InvalidParameter for a key that is no token id."""
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_INT32:
            raise InvalidParameter(f"logit_bias must have token ids as keys, and {key[:40]!r} is none", "logit_bias")
        result[int(key)] = min(max(value, -100.0), 100.0)
    return tuple(result.items())


def _require(holds: bool, name: str, requirement: str) -> None:
    if not holds:
        raise InvalidParameter(f"{name} {requirement}", name)
