"""What a fine-tuning run is asked for and what it reports; knows no job, no database and no training library."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BEAT_S = 5.0
"""How often a worker that lives says so at least, in seconds."""


@dataclass(frozen=True, slots=True)
class TrainingParams:
    """How an adapter is trained. Complete but for what only the data tells.

    epochs: passes over the data. learning_rate: the highest, after the warmup; it falls linearly to zero.
    batch_size: packed sequences of one optimiser step; None: chosen from the amount of data, so that little data still
    gives several steps. sequence_length: tokens of a packed sequence; None: chosen likewise.
    rank, alpha, dropout: of the LoRA pairs, on all linear layers of the model but its head. seed: of the pairs'
    beginning, the order of the data and the dropout. validation_split: the part of the documents that is kept aside to
    measure the loss on. num_workers: above 1, data parallel training over so many workers.
    """

    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int | None = None
    sequence_length: int | None = None
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    seed: int = 0
    validation_split: float = 0.0
    num_workers: int = 1


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """One attempt at a fine-tuning job.

    fence: grows with each attempt. model_id: what the adapter will be called. base_model: the id of a configured model.
    training_data, validation_data: digests of blobs in the object store, each a JSON string per line: the documents.
    checkpoint: digest of the manifest to go on from; None: from the beginning.
    """

    job_id: str
    fence: int
    account: str
    model_id: str
    base_model: str
    training_data: str
    params: TrainingParams
    validation_data: str | None = None
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker works, and there is nothing new to tell."""


@dataclass(frozen=True, slots=True)
class Started:
    """The data is tokenised and packed, and training begins after `step` steps (above 0: from a checkpoint)."""

    step: int
    total_steps: int
    num_documents: int
    num_tokens: int
    batch_size: int
    sequence_length: int


@dataclass(frozen=True, slots=True)
class Progress:
    """After an optimiser step. loss: mean of the step, nats per token. tokens: trained on since the beginning of the
    job, padding and repeated steps not counted. tokens_per_s: of late. seconds_left: estimated."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Validated:
    """The loss on the validation data, nats per token, after an epoch."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """From this manifest the training can go on after `step` steps. metrics: of the last step."""

    step: int
    manifest: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """The adapter is in the object store, under this manifest. tokens: trained on in all. training_time_s: of this
    attempt."""

    manifest: str
    num_bytes: int
    tokens: int
    training_time_s: float


TrainingEvent = Alive | Started | Progress | Validated | CheckpointSaved | Finished
