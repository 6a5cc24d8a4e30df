"""The tokenizer as the HTTP side calls it: short texts are handled where they are, long ones by the Tokenizer."""

import logging

from deployments.config import GraphConfig
from deployments.graph import Tokenizer
from deployments.model_files import ModelSourceError
from deployments.tokenizer import TokenizerNode, size_of, size_of_texts
from deployments.types import EncodeRequest, EncodeResult

MAX_SIZE = 2048
"""Characters or token ids, a millisecond of work: what it costs the calling process to have another one do it, for
whose answer it then waits some more."""

logger = logging.getLogger(__name__)


class NearTokenizer:
    """Implements `deployments.graph.Tokenizer` by one in this process and one that is far, but never in the way."""

    def __init__(self, near: Tokenizer, far: Tokenizer) -> None:
        self._near = near
        self._far = far

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        return await self._for(size_of(request)).encode(request)

    async def decode(self, model: str, token_ids: tuple[int, ...], *, skip_special_tokens: bool = False) -> str:
        tokenizer = self._for(len(token_ids))
        return await tokenizer.decode(model, token_ids, skip_special_tokens=skip_special_tokens)

    async def token_texts(self, model: str, token_ids: tuple[int, ...]) -> tuple[str, ...]:
        return await self._for(len(token_ids)).token_texts(model, token_ids)

    async def count(self, model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
        return await self._for(size_of_texts(texts)).count(model, texts)

    def _for(self, size: int) -> Tokenizer:
        return self._near if size <= MAX_SIZE else self._far


async def nearest(config: GraphConfig, far: Tokenizer) -> Tokenizer:
    """A NearTokenizer, or `far` alone where this machine does not have the files of every model."""
    near = TokenizerNode(config)
    try:
        await near.start()
    except ModelSourceError as error:
        logger.warning("all texts go to the Tokenizer, since there is none here: %s", error)
        return far
    return NearTokenizer(near, far)
