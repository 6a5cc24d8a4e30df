"""Documents to packed sequences of tokens, and the order in which they are trained on."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from tokenizers import Encoding, Tokenizer

from deployments.errors import InvalidParameter, InvalidTrainingData
from deployments.fine_tune.learned_text import Render, Span, learned_text
from deployments.fine_tune.packing import Piece, pack, split
from deployments.model_files import ModelFiles
from deployments.training_documents import Document, read_lines
from deployments.types import ChatPrompt

T = TypeVar("T")

Array = np.ndarray[Any, np.dtype[np.int32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

IGNORED = -100
"""The label of a position from which nothing is learned."""

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
class Tokens:
    """A document: arrays [tokens]. labels: its tokens, IGNORED where one is not learned."""

    ids: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_learned(self) -> int:
        """The first is never learned: it follows nothing."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Packed sequences: arrays [rows, sequence length].

    At each position stands a token, its place within its document (which begins again at 0 with every piece), and the
    label: the token that follows in the document, or IGNORED where that is not learned, as in the padding at the end of
    a row.
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
            raise InvalidTrainingData(f"line {number} is no document", param) from None
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
    render: Render = render_none,
    tick: Callable[[], None] = lambda: None,
) -> list[Tokens]:
    """The tokens of every document of which something is learned, within its limits; `tick` is called now and then.

    Of a conversation `render` makes a text in which all special tokens are spelled out, so it has no other limits: what
    is learned then is exactly what a chat request is answered.
    Raises InvalidTrainingData: of no document anything is learned, or one has what the model does not know.
    """
    special = [*limits.end, *(id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special)]
    tokenized = []
    for first in range(0, len(documents), _TOKENIZED_AT_ONCE):
        tick()
        texts = []
        for number, document in enumerate(documents[first : first + _TOKENIZED_AT_ONCE], first):
            try:
                text = learned_text(document, render)
                text.text.encode()
            except UnicodeEncodeError as error:
                raise InvalidTrainingData(
                    f"document {number} contains a lone surrogate, which is no character", param
                ) from error
            except InvalidParameter as error:
                raise InvalidTrainingData(f"document {number}: {error.message}", param) from error
            texts.append(text)
        encodings = tokenizer.encode_batch([text.text for text in texts], add_special_tokens=False)
        for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True), first):
            ids = np.array(encoding.ids, np.int32)
            if not len(ids):
                continue
            if ids.max() >= vocab_size:
                raise InvalidTrainingData(f"document {number} contains a token that the model does not know", param)
            is_learned = np.ones(len(ids), bool)
            if text.learned is not None:
                is_learned = _learned(text.text, text.learned, encoding, np.isin(ids, special))
            tokens = _labelled(ids, is_learned, Limits((), ()) if text.is_whole else limits)
            if tokens.num_learned:
                tokenized.append(tokens)
    if not tokenized:
        raise InvalidTrainingData("the documents leave nothing to train on: they have no tokens", param)
    return tokenized


def _learned(text: str, spans: Sequence[Span], encoding: Encoding, is_special: Mask) -> Mask:
    """The tokens that have a character in one of the spans, the blanks after it, and the special token after those: by
    them the turn ends."""
    starts, stops = np.array(encoding.offsets, np.int64).T
    span_starts, span_stops = np.array(spans, np.int64).reshape(-1, 2).T
    # Of the spans, which are in order, the last one that begins before the token ends.
    last = np.searchsorted(span_starts, stops, "left") - 1
    learned: Mask = (last >= 0) & (np.append(span_stops, 0)[last] > starts)
    for after in np.searchsorted(starts, span_stops, "left"):
        end = after
        while end < len(starts) and not is_special[end] and not text[starts[end] : stops[end]].strip():
            end += 1
        if end < len(starts) and is_special[end]:
            end += 1
        learned[after:end] = True
    return learned


def _labelled(ids: Array, is_learned: Mask, limits: Limits) -> Tokens:
    start, end = np.array(limits.start, np.int32), np.array(limits.end, np.int32)
    labels = np.where(is_learned, ids, np.int32(IGNORED))
    return Tokens(np.concatenate([start, ids, end]), np.concatenate([start, labels, end]))


def split_off(documents: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Documents to train on, and to validate with: `share` of them, at least one, but never all. Both in order."""
    num_kept_aside = min(max(round(share * len(documents)), 1), len(documents) - 1) if share > 0 else 0
    chosen = set(random.Random(f"validation {seed}").sample(range(len(documents)), num_kept_aside))  # noqa: S311
    train = [document for index, document in enumerate(documents) if index not in chosen]
    return train, [documents[index] for index in sorted(chosen)]


def make_rows(documents: Sequence[Tokens], sequence_length: int, *, together: bool = True) -> Rows:
    """Packs the documents; without `together` each piece has a row of its own.

    A document of n tokens has n - 1 positions that are followed by one: these are split and packed, so that every
    token but the first of a document is met once in a pass, wherever the document is split. Pieces of which nothing is
    learned are left out.
    """
    pieces = [
        piece
        for piece in split([len(tokens) - 1 for tokens in documents], sequence_length)
        if (_labels(documents, piece) != IGNORED).any()
    ]
    packed = pack(pieces, sequence_length) if together else [[piece] for piece in pieces]
    shape = (len(packed), sequence_length)
    token_ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    for row, in_row in enumerate(packed):
        place = 0
        for piece in in_row:
            end = place + len(piece)
            token_ids[row, place:end] = documents[piece.document].ids[piece.start : piece.end]
            labels[row, place:end] = _labels(documents, piece)
            positions[row, place:end] = np.arange(len(piece))
            place = end
        # The padding goes on like one more document: attention in it costs nothing special and reaches nobody.
        positions[row, place:] = np.arange(sequence_length - place)
    return Rows(token_ids, positions, labels, len(documents))


def _labels(documents: Sequence[Tokens], piece: Piece) -> Array:
    """Of each position of the piece, that of the token which follows."""
    labels: Array = documents[piece.document].labels[piece.start + 1 : piece.end + 1]
    return labels


def order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """In which order the rows come in this pass over the data, counted from 0."""
    rows = list(range(num_rows))
    random.Random(f"order {seed} {epoch}").shuffle(rows)  # noqa: S311
    return rows


def orders(num_rows: int, seed: int, epochs: int) -> Iterator[int]:
    """The rows of all passes, one after the other."""
    for epoch in range(epochs):
        yield from order(num_rows, seed, epoch)
