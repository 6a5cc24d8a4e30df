"""`langchain-openai`, unmodified, against a running service: its completions class and its chat class."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI

from tests.integration.service import MODEL, Service

pytestmark = pytest.mark.timeout(400)

PROMPT = "The capital of France is"


@pytest.fixture
async def where(service: Service) -> AsyncIterator[dict[str, Any]]:
    """With HTTP clients that the test closes: LangChain's own would outlive their event loop."""
    with httpx.Client() as http_client:
        async with httpx.AsyncClient() as http_async_client:
            yield {
                "base_url": f"{service.url}/v1",
                "api_key": service.key,
                "model": MODEL,
                "max_retries": 0,
                "timeout": 120,
                "http_client": http_client,
                "http_async_client": http_async_client,
            }


@pytest.fixture
def llm(where: dict[str, Any]) -> OpenAI:
    """With nothing said about seed and logprobs, which it then sends as nulls."""
    return OpenAI(**where, temperature=0, max_tokens=6)


@pytest.fixture
def chat(where: dict[str, Any]) -> ChatOpenAI:
    return ChatOpenAI(**where, temperature=0, max_tokens=8)


def test_the_completions_class_really_sends_nulls(llm: OpenAI) -> None:
    assert {"seed": None, "logprobs": None}.items() <= llm._default_params.items()


def test_a_text_is_the_same_whole_streamed_and_in_a_batch(llm: OpenAI) -> None:
    whole = llm.invoke(PROMPT)
    assert whole.startswith(" Paris")
    assert "".join(llm.stream(PROMPT)) == whole
    assert llm.batch([PROMPT, "Two plus two is", PROMPT])[::2] == [whole, whole]


async def test_asynchronous_texts_are_the_same(llm: OpenAI) -> None:
    whole = await llm.ainvoke(PROMPT)
    assert whole.startswith(" Paris")
    assert "".join([piece async for piece in llm.astream(PROMPT)]) == whole
    assert (await llm.abatch([PROMPT, "Two plus two is"]))[0] == whole


def test_generate_reports_usage_and_groups_choices_by_prompt(where: dict[str, Any]) -> None:
    llm = OpenAI(**where, temperature=1.0, seed=5, n=2, best_of=3, max_tokens=4, batch_size=2)
    result = llm.generate([PROMPT, "Two plus two is", "Once upon a time"])
    assert [len(generations) for generations in result.generations] == [2, 2, 2]
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] >= 3 * 2


def test_logprobs_and_stop_come_back_in_the_generation_info(where: dict[str, Any]) -> None:
    llm = OpenAI(**where, temperature=0, max_tokens=8, logprobs=2)
    [[generation]] = llm.generate([PROMPT], stop=["."]).generations
    assert generation.text == " Paris"
    assert generation.generation_info is not None
    assert generation.generation_info["finish_reason"] == "stop"
    assert generation.generation_info["logprobs"]["tokens"][0] == " Paris"


def test_a_chat_is_the_same_whole_and_streamed(chat: ChatOpenAI) -> None:
    messages = [("system", "You are terse."), ("human", "Say hello.")]
    whole = chat.invoke(messages)
    assert whole.content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 8
    assert whole.response_metadata["finish_reason"] == "length"
    pieces = list(chat.stream(messages, stream_usage=True))
    assert "".join(str(piece.content) for piece in pieces) == whole.content
    [usage] = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert usage["total_tokens"] == whole.usage_metadata["total_tokens"]
    assert usage["output_tokens"] == 8
    assert [answer.content for answer in chat.batch([messages, messages])] == [whole.content] * 2


async def test_an_asynchronous_chat_with_logprobs(chat: ChatOpenAI) -> None:
    answer = await chat.bind(logprobs=True, top_logprobs=2).ainvoke("Say hello.")
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer.content
    said = "".join([str(piece.content) async for piece in chat.astream("Say hello.")])
    assert said == answer.content


def test_errors_are_those_of_the_openai_client(where: dict[str, Any]) -> None:
    with pytest.raises(openai.AuthenticationError):
        OpenAI(**where | {"api_key": "sk-wrong"}).invoke(PROMPT)
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(**where | {"model": "no-such-model"}).invoke(PROMPT)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        OpenAI(**where, temperature=3).invoke(PROMPT)
