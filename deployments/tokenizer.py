"""The tokenizer node of the graph: the text work of all configured models, off the event loop where it is long."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from deployments.config import GraphConfig, ModelConfig
from deployments.errors import EngineDead, ModelNotFound
from deployments.model_files import read_model_files
from deployments.model_source import resolve
from deployments.model_tokenizer import ModelTokenizer, load_tokenizer
from deployments.types import ChatPrompt, EncodeRequest, EncodeResult, TextPrompt, TokenPrompt

MAX_SIZE_ON_EVENT_LOOP = 4096
"""Characters or token ids, about two milliseconds of work; what is longer runs in a thread."""

_SIZE_OF_A_TEXT = 64
"""What each text takes however short it is, in characters that would take as long."""
_SPELLINGS = 4
"""How many texts are encoded for a bad word, see `ModelTokenizer.spell`."""

Result = TypeVar("Result")


class TokenizerNode:
    """Implements `deployments.graph.Tokenizer`. A model is loaded by `start`, or by the first call that needs it."""

    def __init__(self, config: GraphConfig, home: Path | None = None) -> None:
        """`home` is where packaged models are prepared; None takes `model_source.default_home()`."""
        self._configs = {model.id: model for model in config.models}
        self._home = home
        self._tokenizers: dict[str, ModelTokenizer] = {}
        self._loading = asyncio.Lock()

    async def start(self) -> None:
        """Load every model's tokenizer. Raises ModelSourceError."""
        for model in self._configs:
            await self._tokenizer(model)

    async def check_health(self) -> None:
        """Returns when every tokenizer is loaded. Raises EngineDead."""
        missing = self._configs.keys() - self._tokenizers.keys()
        if missing:
            raise EngineDead(f"tokenizers not loaded: {', '.join(sorted(missing))}")

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        """See `deployments.graph.Tokenizer.encode`; also raises ModelSourceError where the model is loaded first."""
        tokenizer = await self._tokenizer(request.model)

        def work() -> EncodeResult:
            spellings = [spelling for word in request.bad_words for spelling in tokenizer.spell(word)]
            return EncodeResult(
                prompt_token_ids=tuple(
                    tokenizer.encode(prompt, truncate_to=request.truncate_to) for prompt in request.prompts
                ),
                bad_words_token_ids=tuple(dict.fromkeys(spellings)),
                context_length=tokenizer.context_length,
                vocab_size=tokenizer.vocab_size,
            )

        return await _run(work, size_of(request))

    async def decode(self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        """See `deployments.graph.Tokenizer.decode`."""
        tokenizer = await self._tokenizer(model)
        return await _run(
            lambda: tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens), size=len(token_ids)
        )

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        """See `deployments.graph.Tokenizer.token_texts`."""
        tokenizer = await self._tokenizer(model)
        return await _run(lambda: tokenizer.token_texts(token_ids), size=len(token_ids))

    async def count(self, model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        """See `deployments.graph.Tokenizer.count`."""
        tokenizer = await self._tokenizer(model)
        return await _run(lambda: tokenizer.count(texts), size_of_texts(texts))

    async def _tokenizer(self, model: str) -> ModelTokenizer:
        if model not in self._configs:
            raise ModelNotFound(model)
        if model not in self._tokenizers:
            async with self._loading:
                if model not in self._tokenizers:
                    self._tokenizers[model] = await asyncio.to_thread(_load, self._configs[model], self._home)
        return self._tokenizers[model]


def _load(config: ModelConfig, home: Path | None) -> ModelTokenizer:
    directory = resolve(config.source, home)
    files = read_model_files(directory, document_start=config.document_start)
    return ModelTokenizer(files, load_tokenizer(directory), context_length=config.context_length)


async def _run(work: Callable[[], Result], size: int) -> Result:
    return work() if size <= MAX_SIZE_ON_EVENT_LOOP else await asyncio.to_thread(work)


def size_of(request: EncodeRequest) -> int:
    """How much work it is, as characters or token ids of one text."""
    size = _SPELLINGS * size_of_texts(request.bad_words)
    for prompt in request.prompts:
        match prompt:
            case TextPrompt():
                size += size_of_texts((prompt.text,))
            case TokenPrompt():
                size += len(prompt.token_ids)
            case ChatPrompt():
                for message in prompt.messages:
                    size += _SIZE_OF_A_TEXT + len(message.role) + len(message.content) + len(message.name or "")
    return size


def size_of_texts(texts: Sequence[str]) -> int:
    """How much work it is to encode each of them, as characters of one text."""
    return sum(_SIZE_OF_A_TEXT + len(text) for text in texts)
