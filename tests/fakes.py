"""Fakes of the graph's nodes, of the keys and of the ledger: scripted, recording, and quick."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from deployments.config import ModelConfig
from deployments.errors import InvalidParameter, Unauthenticated
from deployments.meter import Meter
from deployments.types import (
    ChatPrompt,
    EncodeRequest,
    EncodeResult,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    PositionLogprobs,
    Prompt,
    PromptStart,
    SequenceOutput,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from serve_app.config import BillingConfig, LimitsConfig
from serve_app.jobs.job import TunedModel
from serve_app.ledger.billing import make_prices
from serve_app.ledger.book import Book, Purse
from serve_app.ledger.entries import Answer, Opening, Operation, Progress, Settlement, Verdict, Visit
from serve_app.limits.windows import Window, WindowStanding, consume
from serve_app.use_cases.admission import Admission, Rules, make_limits
from serve_app.use_cases.callers import Principal
from serve_app.use_cases.keys import Keys
from serve_app.use_cases.models import ModelCatalog, Models
from serve_app.use_cases.tuned_models import ComingModel, TunedModels

KEY = "tt-test-key"
DOCUMENT_TOKEN = 0x110000
VOCAB_SIZE = DOCUMENT_TOKEN + 1


def token_ids_of(text: str) -> tuple[int, ...]:
    """One token for each code point, whose id is the code point."""
    return tuple(map(ord, text))


def text_of(token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    special = "" if skip_special_tokens else "<document>"
    return "".join(special if token_id == DOCUMENT_TOKEN else chr(token_id) for token_id in token_ids)


class FakeTokenizer:
    """One token for each code point; beginnings of documents are the one special token. Records what it encodes."""

    def __init__(self, *, context_length: int = 8192) -> None:
        self.context_length = context_length
        self.requests: list[EncodeRequest] = []

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        self.requests.append(request)
        encoded = tuple(self._encode(prompt) for prompt in request.prompts)
        if request.truncate_to is not None:
            encoded = tuple(token_ids[-request.truncate_to :] for token_ids in encoded)
        bad_words = [spelling for word in request.bad_words for spelling in (word, f" {word}")]
        return EncodeResult(encoded, tuple(map(token_ids_of, bad_words)), self.context_length, VOCAB_SIZE)

    async def decode(self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        del model
        self._check(token_ids)
        return text_of(token_ids, skip_special_tokens=skip_special_tokens)

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        del model
        self._check(token_ids)
        return tuple(text_of([token_id], skip_special_tokens=False) for token_id in token_ids)

    async def count(self, model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        del model
        return tuple(map(len, texts))

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        match prompt:
            case TokenPrompt(token_ids):
                self._check(token_ids)
                return token_ids
            case TextPrompt(text, start):
                return (DOCUMENT_TOKEN,) * (start is PromptStart.DOCUMENT) + token_ids_of(text)
            case ChatPrompt(messages, add_generation_prompt, continue_final_message):
                text = "\n".join(f"{message.role}: {message.content}" for message in messages)
                if add_generation_prompt and not continue_final_message:
                    text += "\nassistant:"
                return token_ids_of(text)

    @staticmethod
    def _check(token_ids: Sequence[int]) -> None:
        if not all(0 <= token_id < VOCAB_SIZE for token_id in token_ids):
            raise InvalidParameter(f"token ids must be from 0 to {VOCAB_SIZE - 1}", "prompt")


class FakeGenerator:
    """Answers each request with its script, cut to the limits of the request; records requests and how they ended.

    texts: the chunks of each sequence, by index, again from the first where a request asks for more sequences.
    error: raised after the last chunk of a stream, and instead of a whole answer.
    hang: after the last chunk, wait until cancelled; `hanging` is set then.
    The logarithm of each token's probability is -1/(index + 1): of several sequences the last is the best.
    """

    def __init__(
        self,
        *chunks: str,
        texts: Sequence[Sequence[str]] = (),
        finish_reason: FinishReason = FinishReason.STOP,
        stop_reason: str | int | None = None,
        error: Exception | None = None,
        hang: bool = False,
    ) -> None:
        self.texts = texts or (chunks or (" there", " was", " light"),)
        self.finish_reason = finish_reason
        self.stop_reason = stop_reason
        self.error = error
        self.hang = hang
        self.requests: list[GenerateRequest] = []
        self.started = asyncio.Event()
        self.hanging = asyncio.Event()
        self.num_finished = 0
        self.num_cancelled = 0
        self.closed = asyncio.Event()

    @property
    def request(self) -> GenerateRequest:
        """The only request that came."""
        assert len(self.requests) == 1
        return self.requests[0]

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        chunks = [chunk async for chunk in self._run(request)]
        sequences = []
        for index in range(request.num_sequences):
            own = [chunk for chunk in chunks if chunk.index == index]
            logprobs = tuple(position for chunk in own for position in chunk.logprobs or ())
            finish_reason = own[-1].finish_reason
            assert finish_reason is not None
            sequences.append(
                SequenceOutput(
                    index=index,
                    token_ids=tuple(token_id for chunk in own for token_id in chunk.token_ids),
                    text="".join(chunk.text for chunk in own),
                    logprobs=logprobs if request.sampling.logprobs is not None else None,
                    finish_reason=finish_reason,
                    stop_reason=own[-1].stop_reason,
                )
            )
        usage = chunks[-1].usage
        assert usage is not None
        return GenerateResult(tuple(sequences), chunks[0].prompt_logprobs, usage)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async with aclosing(self._run(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def check_health(self) -> None:
        return None

    async def _run(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.requests.append(request)
        self.started.set()
        try:
            scripted = self._script(request)
            for chunk in scripted[:-1] if self.error or self.hang else scripted:
                yield chunk
                await asyncio.sleep(0)
            if self.hang:
                self.hanging.set()
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
            self.num_finished += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.closed.set()

    def _script(self, request: GenerateRequest) -> list[GenerateChunk]:
        """The chunks of all sequences, interleaved; then one that only ends each; the last carries the usage."""
        sampling = request.sampling
        per_sequence = [self._pieces(request, index) for index in range(request.num_sequences)]
        chunks = [
            GenerateChunk(
                index=index,
                token_ids=token_ids_of(pieces[round_]),
                text=pieces[round_] if sampling.detokenize else "",
                logprobs=_logprobs(pieces[round_], sampling.logprobs, -1 / (index + 1)),
            )
            for round_ in range(max(map(len, per_sequence)))
            for index, pieces in enumerate(per_sequence)
            if round_ < len(pieces)
        ]
        num_tokens = 0
        for index, pieces in enumerate(per_sequence):
            length = sum(map(len, pieces))
            num_tokens += length
            is_cut = length < sum(map(len, self.texts[index % len(self.texts)]))
            end = FinishReason.LENGTH if is_cut else self.finish_reason
            stop_reason = self.stop_reason if end is FinishReason.STOP else None
            chunks.append(GenerateChunk(index, (), "", finish_reason=end, stop_reason=stop_reason))
        last = chunks.pop()
        usage = Usage(len(request.prompt_token_ids), num_tokens)
        chunks.append(
            GenerateChunk(
                last.index, (), "", finish_reason=last.finish_reason, stop_reason=last.stop_reason, usage=usage
            )
        )
        if sampling.prompt_logprobs is not None:
            first = chunks[0]
            prompt = text_of(request.prompt_token_ids, skip_special_tokens=False)
            positions = _logprobs(prompt, sampling.prompt_logprobs, -1.0) or ()
            chunks[0] = GenerateChunk(
                first.index,
                first.token_ids,
                first.text,
                logprobs=first.logprobs,
                prompt_logprobs=(None, *positions[1:]),
                finish_reason=first.finish_reason,
                stop_reason=first.stop_reason,
                usage=first.usage,
            )
        return chunks

    def _pieces(self, request: GenerateRequest, index: int) -> list[str]:
        """The script of one sequence within `max_tokens` and `max_characters`, which are the same thing here."""
        sampling = request.sampling
        room = sampling.max_tokens
        if sampling.max_characters is not None:
            room = min(room, sampling.max_characters)
        pieces = []
        for piece in self.texts[index % len(self.texts)]:
            if room > 0:
                pieces.append(piece[:room])
            room -= len(piece)
        return pieces


def _logprobs(text: str, num_top: int | None, logprob: float) -> tuple[PositionLogprobs, ...] | None:
    if num_top is None:
        return None

    def position(token_id: int) -> PositionLogprobs:
        chosen = TokenLogprob(token_id, logprob, chr(token_id))
        others = [TokenLogprob(token_id + i, logprob - i, chr(token_id + i)) for i in range(1, num_top)]
        return PositionLogprobs(chosen, (chosen, *others)[:num_top])

    return tuple(map(position, token_ids_of(text)))


class FakeKeys(Keys):
    """Knows some keys, each of an account of the same name."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys or (KEY,)

    async def authenticate(self, key: str) -> Principal:
        if key not in self._keys:
            raise Unauthenticated("the API key is not valid")
        return Principal(account=f"account-of-{key}", key_id=key)


class FakeAdmissionStore:
    """The ledger's own rules over rows in memory; keys and accounts exist as soon as they are named, without bounds.

    error: raised by every method while it is set.
    """

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self.book = Book(keys=defaultdict(Purse), accounts=defaultdict(Purse))
        self.recorded: list[Progress] = []
        self.error: Exception | None = None
        self._now = now

    @property
    def settled(self) -> list[Settlement]:
        return self.book.settled

    @property
    def settlement(self) -> Settlement:
        """The only one."""
        assert len(self.book.settled) == 1
        return self.book.settled[0]

    async def open(self, opening: Opening) -> Verdict:
        verdict = await self._apply(opening)
        assert isinstance(verdict, Verdict)
        return verdict

    async def visit(self, visit: Visit) -> Verdict:
        verdict = await self._apply(visit)
        assert isinstance(verdict, Verdict)
        return verdict

    async def settle(self, settlement: Settlement) -> bool:
        return await self._apply(settlement) is True

    async def record(self, progress: Sequence[Progress]) -> None:
        self.recorded += progress
        for part in progress:
            await self._apply(part)

    async def standings(self, key_id: str, dialect: str, windows: Sequence[Window]) -> tuple[WindowStanding, ...]:
        states = {window.name: self.book.windows.get((key_id, dialect, window.name)) for window in windows}
        stored = {name: state for name, state in states.items() if state is not None}
        return consume(windows, stored, requests=0, tokens=0, now=self._now()).standings

    async def _apply(self, operation: Operation) -> Answer:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        [answer] = self.book.apply([operation], self._now())
        return answer


class FakeTunedModels:
    """Published models in memory. num_reads: how often one was asked for by its id."""

    def __init__(self, *models: TunedModel, coming: Sequence[ComingModel] = ()) -> None:
        self.models = {model.id: model for model in models}
        self.num_reads = 0
        self._coming = {model.id: model for model in coming}

    async def get(self, account: str, model_id: str) -> TunedModel | None:
        self.num_reads += 1
        model = self.models.get(model_id)
        return model if model is not None and model.account == account else None

    async def coming(self, account: str, model_id: str) -> ComingModel | None:
        del account
        return self._coming.get(model_id)

    async def list(self, account: str) -> Sequence[TunedModel]:
        return [model for model in self.models.values() if model.account == account]

    async def set_deployed(
        self, account: str, model_id: str, *, deployed: bool, undeploy_at: float | None
    ) -> TunedModel | None:
        model = await self.get(account, model_id)
        if model is not None:
            model = self.models[model_id] = replace(model, deployed=deployed, undeploy_at=undeploy_at)
        return model

    async def delete(self, account: str, model_id: str, now: float) -> bool:
        del now
        return await self.get(account, model_id) is not None and bool(self.models.pop(model_id))


def make_models(*configs: ModelConfig, tuned: FakeTunedModels | None = None) -> Models:
    """The models that callers may name: these configured ones, and what accounts have trained."""
    return Models(ModelCatalog(configs), TunedModels(tuned or FakeTunedModels()))


def make_admission(
    store: FakeAdmissionStore | None = None,
    *,
    billing: BillingConfig | None = None,
    limits: LimitsConfig | None = None,
    meter: Meter | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Admission:
    """Admission with the default prices and limits, unless told otherwise."""
    rules = Rules(make_prices(billing or BillingConfig()), make_limits(limits or LimitsConfig()))
    return Admission(store or FakeAdmissionStore(), rules, owner="test-owner", meter=meter, monotonic=monotonic)
