"""From an uploaded file to documents: JSON lines, plain text, CSV. Pure; knows no HTTP.

The name's ending tells the format; without one that is known, a file that begins like JSON lines is taken for them.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import PurePath

from deployments.errors import InvalidTrainingData
from deployments.training_documents import Completion, Document
from serve_app.dialects.fine_tuning.json_lines import parse_json_lines

PARAM = "file"

_DELIMITER = "<|endoftext|>"
_JSON_LINES = (".jsonl", ".ndjson")
_TEXT = (".txt", ".text", ".md")
_CSV = (".csv",)

# Of the whole process; what a document may hold is bounded elsewhere.
csv.field_size_limit(2**31 - 1)


def parse_documents(filename: str, data: bytes) -> Iterator[Document]:
    """The documents in order, at least one, none empty. Raises InvalidTrainingData, which says where, as it goes."""
    ending = PurePath(filename).suffix.lower()
    if ending in _TEXT:
        documents: Iterator[Document] = parse_text(_decoded(data))
    elif ending in _CSV:
        documents = parse_csv(_decoded(data))
    elif ending in _JSON_LINES or data.lstrip()[:1] in (b"{", b'"'):
        documents = parse_json_lines(_decoded(data), PARAM)
    else:
        raise InvalidTrainingData("the name of the file must end in .jsonl, .txt or .csv", PARAM)
    is_empty = True
    for document in documents:
        is_empty = False
        yield document
    if is_empty:
        raise InvalidTrainingData("the file has nothing in it to train on", PARAM)


def parse_text(text: str) -> Iterator[str]:
    """What stands between marks of the end of a text, without the line breaks around it; without marks all of it."""
    for part in text.split(_DELIMITER):
        document = part.strip("\r\n")
        if document.strip():
            yield document


def parse_csv(text: str) -> Iterator[Document]:
    """A document for each row. A first row that names the columns says which of them count: `text`, or `prompt` and
    `completion`, which belong together; without such a row there must be one column only."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: tuple[int, ...] | None = None
    width: int | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidTrainingData(f"line {reader.line_num}: {error}", PARAM) from None
        if not row:
            continue
        if columns is None:
            columns = _named_columns(row)
            if columns is not None:
                continue
            columns = (0,)
            if len(row) > 1:
                message = "the first line must name a column text, or the columns prompt and completion"
                raise InvalidTrainingData(message, PARAM)
            width = 1
        if width is not None and len(row) != width:
            message = f"line {reader.line_num}: the row has {len(row)} columns; texts with commas need quotes"
            raise InvalidTrainingData(message, PARAM)
        yield _row_document(row, columns, reader.line_num)


def _named_columns(row: list[str]) -> tuple[int, ...] | None:
    names = [name.strip().lower() for name in row]
    for wanted in (("text",), ("prompt", "completion")):
        if all(names.count(name) == 1 for name in wanted):
            return tuple(map(names.index, wanted))
    return None


def _row_document(row: list[str], columns: tuple[int, ...], line: int) -> Document:
    if max(columns) >= len(row):
        raise InvalidTrainingData(f"line {line}: the row has only {len(row)} column(s)", PARAM)
    *prompt, text = [row[column] for column in columns]
    if not text:
        raise InvalidTrainingData(f"line {line}: the {'completion' if prompt else 'document'} is empty", PARAM)
    return Completion(prompt[0], text) if prompt else text


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidTrainingData(f"the file is not UTF-8: {error.reason} at byte {error.start}", PARAM) from None
