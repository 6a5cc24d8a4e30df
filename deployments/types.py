"""The canonical requests and answers that travel through the graph; knows no dialect and no wire format."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a sequence ended.

    STOP: a stop string, a stop token or the end-of-text token. LENGTH: `max_tokens`, `max_characters` or the
    context window was reached.
    """

    STOP = "stop"
    LENGTH = "length"


class PromptStart(StrEnum):
    """What stands before the first token of a text prompt.

    DEFAULT: what the model's tokenizer adds by itself (often a BOS token, for some models nothing).
    PLAIN: no special tokens. DOCUMENT: the token that the model knows as the beginning of a document.
    """

    DEFAULT = "default"
    PLAIN = "plain"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue. With `start=DOCUMENT` the text may be empty."""

    text: str
    start: PromptStart = PromptStart.DEFAULT


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue, used exactly as given."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages to render through the model's chat template.

    `add_generation_prompt` opens the assistant's turn; `continue_final_message` leaves the last message open.
    """

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Everything of one call that needs the tokenizer of `model`, in one message.

    Each bad word becomes the token sequences that spell it, with and without a leading space.
    `truncate_to` keeps the last that many tokens of each prompt; -1 keeps what leaves room for one token of output.
    """

    model: str
    prompts: tuple[Prompt, ...]
    bad_words: tuple[str, ...] = ()
    truncate_to: int | None = None


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """Token ids of each prompt, in order, and what the caller must know about the model.

    `context_length` is the largest number of tokens, prompt and output together, that the model serves.
    """

    prompt_token_ids: tuple[tuple[int, ...], ...]
    bad_words_token_ids: tuple[tuple[int, ...], ...]
    context_length: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends. Complete and validated: no field is left to a default elsewhere.

    Order of operations on the logits of a position: `allowed_token_ids`, `logit_bias`, `bad_words_token_ids` and the
    end-token mask of `min_tokens`; then the three penalties; then temperature, top_k, top_p, min_p; then the draw.
    The penalties are those of vLLM: presence and frequency over generated tokens, repetition over prompt and output.

    temperature 0 takes the likeliest token. top_p 0 keeps the likeliest token only. top_k 0 keeps all.
    max_characters bounds the text in Unicode code points. logprobs: how many likeliest alternatives to report for
    each position beside the chosen token (0: the chosen alone, None: nothing, -1: the whole vocabulary); they are
    log-probabilities of the raw model output, before any of the operations above. prompt_logprobs: the same for the
    prompt's positions.
    """

    max_tokens: int = 16
    seed: int = 0
    min_tokens: int = 0
    max_characters: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter of a base model. `digest` names its content: another digest is another adapter, whatever its `id`."""

    id: str
    digest: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue `num_sequences` times.

    Sequence i of a request draws its random numbers from (seed, i, position), so it does not depend on the others.
    `generated` resumes: the token ids already delivered of each sequence; only what follows them is answered, and
    `max_tokens` counts them. `complete` names the sequences whose end was delivered too: they are not continued.
    `cache_salt` keeps the reuse of cached prefixes within one account. `adapter`: computed with this adapter, which
    must be loaded, on top of the model; None: the model alone.
    """

    request_id: str
    model: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    num_sequences: int = 1
    generated: Sequence[Sequence[int]] = ()
    complete: frozenset[int] = frozenset()
    cache_salt: str = ""
    adapter: AdapterRef | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its text and the natural logarithm of its probability (may be -inf)."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token that stands at a position, and the likeliest alternatives there, likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `completion_tokens` counts every sequence, an end token included;
    `cached_tokens` is the part of the prompt whose computation was reused."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """What of a request's time was the engine's: seconds from its arrival there until it began to be computed, until
    its first token, and until the last so far."""

    queue_s: float
    first_token_s: float
    last_token_s: float


@dataclass(frozen=True, slots=True)
class GenerateChunk:
    """Several new tokens of sequence `index`.

    `text` holds whole code points only, and no text that may still turn out to be part of a stop string; it can be
    empty while `token_ids` is not, and the other way round. `prompt_logprobs` comes with the first chunk of sequence
    0 where asked for: one entry for each prompt token, None for the first. `finish_reason` comes once for each
    sequence, with its last chunk; `stop_reason` is the stop string or stop token id that ended it. `usage` comes once,
    with the very last chunk of the request; `timing` comes with the first and with the last.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[PositionLogprobs, ...] | None = None
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    timing: Timing | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """One finished sequence; `text` and the fields after it mean what they mean in GenerateChunk."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[PositionLogprobs, ...] | None
    finish_reason: FinishReason
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The whole answer to a request: its sequences in the order of their index."""

    sequences: tuple[SequenceOutput, ...]
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None
    usage: Usage
    timing: Timing | None = field(default=None, compare=False)
