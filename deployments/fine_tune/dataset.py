"""Documents to packed sequences of tokens, and the order in which they are trained on."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from deployments.errors import InvalidParameter, InvalidTrainingData
from deployments.fine_tune.packing import pack, split
from deployments.model_files import ModelFiles
from deployments.training_documents import Document, read_lines, to_chat_prompt
from deployments.types import ChatPrompt

Array = np.ndarray[Any, np.dtype[np.int32]]

IGNORED = -100
"""The label of a position that is padding."""

_TOKENIZED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What stands around every document: the tokens that begin and end one, where the model has such tokens.

    The end is a token at which generation stops; of several the one that also separates documents, as the base model
    learned it. With the start before it, the first word of a document is learned like all others, and so is what
    follows an empty prompt.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, files: ModelFiles) -> "Limits":
        start, ends = files.document_start_id, files.eos_token_ids
        end = start if start in ends else ends[0] if ends else None
        return cls(() if start is None else (start,), () if end is None else (end,))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Packed sequences: arrays [rows, sequence length].

    At each position stands a token, its place within its document (which begins again at 0 with every piece), and the
    label: the token that follows in the document. Padding, at the end of a row, has the label IGNORED.
    """

    token_ids: Array
    positions: Array
    labels: Array
    num_documents: int

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Those with a label."""
        return int((self.labels != IGNORED).sum())

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        digest = hashlib.sha256(str(self.token_ids.shape).encode())
        for array in (self.token_ids, self.positions, self.labels):
            digest.update(array.tobytes())
        return digest.hexdigest()


def read_documents(data: bytes, param: str = "training_data") -> list[Document]:
    """What `deployments.training_documents` wrote. Raises InvalidTrainingData."""
    documents: list[Document] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            [document] = read_lines(line)
        except ValueError:
            raise InvalidTrainingData(f"line {number} is neither a text nor a conversation", param) from None
        documents.append(document)
    return documents


def render_none(conversation: ChatPrompt) -> str:
    """What a model does with conversations that has no chat template."""
    del conversation
    raise InvalidParameter("the model has no chat template, so it takes texts but no messages", "messages")


def tokenize(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    vocab_size: int,
    param: str = "training_data",
    render: Callable[[ChatPrompt], str] = render_none,
    tick: Callable[[], None] = lambda: None,
) -> list[Array]:
    """The tokens of every document that has any, within its limits; `tick` is called now and then.

    Of a conversation `render` makes a text in which all special tokens are spelled out, so it has no other limits: what
    is learned then is exactly what a chat request continues.
    Raises InvalidTrainingData: no document has any, or one has what the model does not know.
    """
    tokenized = []
    for first in range(0, len(documents), _TOKENIZED_AT_ONCE):
        tick()
        some = documents[first : first + _TOKENIZED_AT_ONCE]
        texts = []
        for number, document in enumerate(some, first):
            try:
                text = document if isinstance(document, str) else render(to_chat_prompt(document))
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidTrainingData(
                    f"document {number} contains a lone surrogate, which is no character", param
                ) from error
            except InvalidParameter as error:
                raise InvalidTrainingData(f"document {number}: {error.message}", param) from error
            texts.append(text)
        for number, encoding in enumerate(tokenizer.encode_batch_fast(texts, add_special_tokens=False), first):
            ids = encoding.ids
            if not ids:
                continue
            if max(ids) >= vocab_size:
                raise InvalidTrainingData(f"document {number} contains a token that the model does not know", param)
            if isinstance(documents[number], str):
                ids = [*limits.start, *ids, *limits.end]
            tokenized.append(np.array(ids, np.int32))
    if not any(len(tokens) > 1 for tokens in tokenized):
        raise InvalidTrainingData("the documents leave nothing to train on: they have no tokens", param)
    return tokenized


def split_off(documents: Sequence[Array], share: float, seed: int) -> tuple[list[Array], list[Array]]:
    """Documents to train on, and to validate with: `share` of them, at least one, but never all. Both in order."""
    num_kept_aside = min(max(round(share * len(documents)), 1), len(documents) - 1) if share > 0 else 0
    chosen = set(random.Random(f"validation {seed}").sample(range(len(documents)), num_kept_aside))  # noqa: S311
    train = [document for index, document in enumerate(documents) if index not in chosen]
    return train, [documents[index] for index in sorted(chosen)]


def make_rows(documents: Sequence[Array], sequence_length: int, *, together: bool = True) -> Rows:
    """Packs the documents; without `together` each piece has a row of its own.

    A document of n tokens has n - 1 positions that are followed by one: these are split and packed, so that every
    token but the first of a document is learned once in a pass, wherever the document is split.
    """
    pieces = split([len(tokens) - 1 for tokens in documents], sequence_length)
    packed = pack(pieces, sequence_length) if together else [[piece] for piece in pieces]
    shape = (len(packed), sequence_length)
    token_ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    for row, in_row in enumerate(packed):
        place = 0
        for piece in in_row:
            tokens, end = documents[piece.document], place + len(piece)
            token_ids[row, place:end] = tokens[piece.start : piece.end]
            labels[row, place:end] = tokens[piece.start + 1 : piece.end + 1]
            positions[row, place:end] = np.arange(len(piece))
            place = end
        # The padding goes on like one more document: attention in it costs nothing special and reaches nobody.
        positions[row, place:] = np.arange(sequence_length - place)
    return Rows(token_ids, positions, labels, len(documents))


def order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """In which order the rows come in this pass over the data, counted from 0."""
    rows = list(range(num_rows))
    random.Random(f"order {seed} {epoch}").shuffle(rows)  # noqa: S311
    return rows


def orders(num_rows: int, seed: int, epochs: int) -> Iterator[int]:
    """The rows of all passes, one after the other."""
    for epoch in range(epochs):
        yield from order(num_rows, seed, epoch)
