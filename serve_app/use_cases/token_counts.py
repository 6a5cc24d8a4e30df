"""How many tokens documents have for a model. Knows no HTTP and no SQL."""

from collections.abc import Iterator, Sequence

from deployments.errors import InvalidParameter, InvalidTrainingData
from deployments.graph import Tokenizer
from deployments.training_documents import Document, num_bytes, to_prompt
from deployments.types import EncodeRequest, TextPrompt

_BATCH_BYTES = 1_000_000
"""How much text is counted by one call of the tokenizer."""


async def count_tokens(tokenizer: Tokenizer, model: str, documents: Sequence[Document], param: str) -> int:
    """Of all documents together; param: what the API calls them.

    Raises InvalidTrainingData, naming the first document that leaves nothing or that the model's template refuses.
    """
    num_tokens = first = 0
    for batch in _batches(documents):
        counts = await _counts(tokenizer, model, batch, param, first)
        if 0 in counts:
            index = first + counts.index(0)
            raise InvalidTrainingData(f"document {index} leaves no tokens to train on", f"{param}[{index}]")
        num_tokens += sum(counts)
        first += len(batch)
    return num_tokens


async def _counts(
    tokenizer: Tokenizer, model: str, batch: Sequence[Document], param: str, first: int
) -> tuple[int, ...]:
    prompts = tuple(map(to_prompt, batch))
    texts = tuple(prompt.text for prompt in prompts if isinstance(prompt, TextPrompt))
    if len(texts) == len(batch):
        return await tokenizer.count(model, texts)
    if texts:  # one by one, so that each count is of what stands at its place
        return tuple(
            [
                (await _counts(tokenizer, model, [document], param, first + index))[0]
                for index, document in enumerate(batch)
            ]
        )
    try:
        encoded = await tokenizer.encode(EncodeRequest(model, prompts))
    except InvalidParameter as error:
        if len(batch) == 1:
            raise InvalidTrainingData(f"document {first}: {error.message}", f"{param}[{first}]") from None
        for index, document in enumerate(batch):
            await _counts(tokenizer, model, [document], param, first + index)
        raise
    return tuple(map(len, encoded.prompt_token_ids))


def _batches(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """The documents in order, in parts of bounded size."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += num_bytes(document)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
