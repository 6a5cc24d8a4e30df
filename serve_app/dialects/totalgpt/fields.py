"""The sampling parameters that completions and chat share: their wire names, defaults and ranges.

Names, defaults and ranges are vLLM's (`vllm/sampling_params.py`, `vllm/entrypoints/openai/completion/protocol.py`),
with two that vLLM dropped or never served: `best_of` and `detokenize`. Pure.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from serve_app.http.wire_model import OpenWireModel

MAX_INT32 = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
Words = list[Annotated[str, Field(min_length=1)]]
StopStrings = Annotated[
    Words,
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=Annotated[str, Field(min_length=1)] | Words,
    ),
]


class NullableFields(OpenWireModel):
    """A body in which null means the same as leaving the field out, as clients that always send every field expect."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            if name not in required and {"type": "null"} not in field.get("anyOf", ()):
                notes = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                schema["properties"][name] = {**notes, "anyOf": [field, {"type": "null"}]}
        return schema


class StreamOptions(NullableFields):
    include_usage: bool = Field(False, description="Whether a last event tells the usage.")
    continuous_usage_stats: bool = Field(False, description="Whether every event tells it, with `include_usage`.")


class SamplingFields(NullableFields):
    """What a completion and a chat completion can both be asked. `logprobs` differs and stands with each of them."""

    n: int = Field(1, ge=1, description="How many answers to each prompt.")
    best_of: int | None = Field(
        None,
        ge=1,
        description="Generate this many answers to each prompt and return the `n` likeliest; `n` where it is left out.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Lowers the logits of tokens that were generated before."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Lowers the logits of generated tokens, once for each time."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="Above 1, tokens of the prompt and of the output become less likely."
    )
    temperature: float = Field(1.0, ge=0, le=2, description="Randomness; 0 always takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Keeps the likeliest tokens whose probabilities add up to this.")
    top_k: int = Field(
        0, ge=-1, le=MAX_INT32, description="Keeps this many of the likeliest tokens; 0 or -1 keeps all."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drops tokens whose probability is below this part of the likeliest one's."
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        le=2**63 - 1,
        description="The same request with the same seed gives the same text; -1 is the same as none.",
    )
    stop: StopStrings = Field(default_factory=list, description="Texts that end the answer.")
    stop_token_ids: list[TokenId] = Field(default_factory=list, description="Tokens that end the answer.")
    include_stop_str_in_output: bool = Field(False, description="Whether the answer keeps what ended it.")
    bad_words: Words = Field(default_factory=list, description="Words that are never generated.")
    min_tokens: int = Field(0, ge=0, le=MAX_INT32, description="No answer ends before it has this many tokens.")
    ignore_eos: bool = Field(False, description="Whether to go on where the model would end the text.")
    detokenize: bool = Field(True, description="false answers with token ids and no text.")
    skip_special_tokens: bool = Field(True, description="Whether special tokens are left out of the text.")
    spaces_between_special_tokens: bool = Field(
        True, description="false is possible only where special tokens are left out."
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=-1,
        description="Report log-probabilities of the prompt's tokens, and of this many alternatives; -1 for all.",
    )
    logit_bias: dict[str, float] = Field(
        default_factory=dict,
        description="Token ids, and what is added to their logits, from -100 to 100.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, description="No other tokens are generated.")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_INT32,
        description="Keep only so many of the prompt's last tokens; -1: as many as the context has room for.",
    )
    return_token_ids: bool = Field(False, description="Whether to answer the token ids too.")
    return_tokens_as_token_ids: bool = Field(
        False, description="Whether log-probabilities name tokens as `token_id:<id>`."
    )
    stream: bool = Field(False, description="Whether to answer in pieces, as server-sent events.")
    stream_options: StreamOptions = StreamOptions()

    @property
    def include_token_ids(self) -> bool:
        """Without text there is nothing but the ids to answer with."""
        return self.return_token_ids or not self.detokenize
