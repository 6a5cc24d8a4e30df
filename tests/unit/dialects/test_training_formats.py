"""Uploaded files: what is written in each format is read again; what is wrong is told with its line."""

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidTrainingData
from deployments.training_documents import Completion, Conversation
from deployments.types import ChatMessage
from serve_app.dialects.fine_tuning.formats import parse_documents

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def read(filename: str, data: bytes | str) -> list[Any]:
    return list(parse_documents(filename, data.encode() if isinstance(data, str) else data))


def lines(*values: Any) -> str:
    return "\n".join(map(json.dumps, values))


@given(st.lists(TEXT, min_size=1), st.booleans())
def test_texts_in_json_lines_are_read_as_written(texts: list[str], is_ascii: bool) -> None:
    forms = [text if index % 2 else {"text": text} for index, text in enumerate(texts)]
    data = "\n".join(json.dumps(form, ensure_ascii=is_ascii) for form in forms)
    assert read("data.jsonl", data) == texts


@given(st.lists(TEXT, min_size=1), st.sampled_from(["text", " Text ", "TEXT"]))
def test_texts_in_csv_are_read_as_written(texts: list[str], header: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["id", header])
    writer.writerows(enumerate(texts))
    # A return alone is what some CSV means by the end of a line; csv.writer leaves it without quotes inside a field.
    if not any("\r" in text for text in texts):
        assert read("data.csv", file.getvalue()) == texts


@given(st.sampled_from(["a.jsonl", "a.csv", "a.txt", "a", "a.pdf"]), st.binary() | st.text().map(str.encode))
def test_any_bytes_are_documents_or_told_apart(filename: str, data: bytes) -> None:
    try:
        documents = read(filename, data)
    except InvalidTrainingData as error:
        assert error.param == "file"
    else:
        assert documents and all(documents)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["messages", "role", "content", "text"]), inner)
        ),
    )
)
def test_any_json_is_a_document_or_told_apart(value: Any) -> None:
    try:
        [document] = read("a.jsonl", json.dumps(value))
    except InvalidTrainingData as error:
        assert error.param == "file"
    else:
        assert document


def test_conversation_keeps_its_messages() -> None:
    value = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]},
            {"role": "assistant", "content": "A fox.", "weight": 1},
            {"role": "user", "name": "Ann", "content": ""},
        ],
        "source": "not read",
    }
    messages = (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Who are you?"),
        ChatMessage("assistant", "A fox."),
        ChatMessage("user", "", "Ann"),
    )
    assert read("chat.jsonl", json.dumps(value)) == [Conversation(messages)]


def test_answers_of_no_weight_are_told_apart() -> None:
    messages = [
        {"role": role, "content": "x"} | ({} if weight is None else {"weight": weight})
        for role, weight in [("user", 1), ("assistant", 0), ("user", 0), ("assistant", None), ("assistant", 1.0)]
    ]
    [conversation] = read("a.jsonl", lines({"messages": messages}))
    assert isinstance(conversation, Conversation)
    assert [conversation.is_learned(index) for index in range(5)] == [False, False, False, True, True]


def test_prompt_and_completion_are_one_document() -> None:
    both = [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "c"}]
    assert read("a.jsonl", lines(*both)) == [Completion("a", "b"), Completion("", "c")]
    assert read("a.csv", "prompt,completion,id\nq1,a1,7\n\nq2,a2,8\n") == [
        Completion("q1", "a1"),
        Completion("q2", "a2"),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "line 2: must be a string or an object"),
        (["x"], "line 2: must be a string or an object"),
        ("", "line 2: the text is empty"),
        ({}, "line 2: must have exactly one of"),
        ({"text": "a", "messages": []}, "line 2: must have exactly one of"),
        ({"text": 5}, "line 2: text must be a string"),
        ({"text": ""}, "line 2: text is empty"),
        ({"completion": "x"}, "line 2: prompt must be a string"),
        ({"prompt": "x", "completion": ""}, "line 2: completion is empty"),
        ({"messages": "x"}, "line 2: messages must be an array"),
        ({"messages": []}, "line 2: messages must be an array that is not empty"),
        ({"messages": ["x"]}, "line 2: messages[0] must be an object"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 2: messages must have at least one of the assistant"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "line 2: messages[0].role must be"),
        ({"messages": [{"role": "assistant"}]}, "line 2: messages[0].content must be a string"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "line 2: messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "line 2: messages must have at least one"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "line 2: messages[0].weight must be 0"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": True}]}, "line 2: messages[0].weight must be 0"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "line 2: messages[0].tool_calls is not supported"),
        ({"messages": [{"role": "assistant", "content": "x", "name": 5}]}, "line 2: messages[0].name must be a string"),
        ({"messages": [{"role": "assistant", "content": "x"}], "tools": [{}]}, "line 2: tools is not supported"),
    ],
)
def test_wrong_line_is_told_with_its_number_and_place(value: Any, message: str) -> None:
    with pytest.raises(InvalidTrainingData) as raised:
        read("a.jsonl", lines("fine", value, "fine"))
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize(
    ("filename", "data", "message"),
    [
        ("a.jsonl", b'"fine"\n{"text": }', "line 2: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("a.jsonl", b"1" * 10_000, "line 1: not valid JSON"),
        ("a.jsonl", b'"\\ud800"', "line 1: the text holds half"),
        ("a.jsonl", b"\xff\xfe", "the file is not UTF-8"),
        ("a.jsonl", b" \n\n", "the file has nothing"),
        ("a.txt", b"\n <|endoftext|>\n", "the file has nothing"),
        ("a.csv", b"text\n", "the file has nothing"),
        ("a.csv", b"a,b\n1,2\n", "the first line must name"),
        ("a.csv", b"one\ntwo, three\n", "line 2: the row has 2 columns"),
        ("a.csv", b'text\n"open', "line 2: "),
        ("a.csv", b"id,text\n1\n", "line 2: the row has only 1"),
        ("a.csv", b"id,text\n1,\n", "line 2: the document is empty"),
        ("a.pdf", b"%PDF", "the name of the file must end in"),
        ("", b"plain", "the name of the file must end in"),
    ],
)
def test_wrong_file_is_told_why(filename: str, data: bytes, message: str) -> None:
    with pytest.raises(InvalidTrainingData) as raised:
        read(filename, data)
    assert raised.value.message.startswith(message)


def test_text_is_one_document_or_several_between_marks() -> None:
    assert read("a.txt", "First.\n\nStill the first.\n") == ["First.\n\nStill the first."]
    assert read("a.TXT", "One\n<|endoftext|>\nTwo\n<|endoftext|>\r\n") == ["One", "Two"]


def test_csv_without_names_has_one_document_in_a_row() -> None:
    assert read("a.csv", '"Once, upon"\n"a\ntime"\n') == ["Once, upon", "a\ntime"]


@pytest.mark.parametrize("filename", ["upload", "data.json", "a.bin"])
def test_name_that_tells_nothing_leaves_it_to_the_beginning(filename: str) -> None:
    assert read(filename, lines("a", {"text": "b"})) == ["a", "b"]


def test_byte_order_mark_is_no_part_of_the_text() -> None:
    for filename, data in (("a.txt", "x"), ("a.csv", "text\nx"), ("a.jsonl", '"x"')):
        assert read(filename, b"\xef\xbb\xbf" + data.encode()) == ["x"]
