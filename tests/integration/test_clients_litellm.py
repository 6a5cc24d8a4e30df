"""LiteLLM, unmodified, against a running service: through each of the prefixes that it has for such services."""

import asyncio
from typing import Any

import pytest

from tests.integration.service import MODEL, Service

pytestmark = [
    pytest.mark.timeout(400),
    # What it warns of is its own: how it declares its models, and the clients that it keeps for the process's life.
    pytest.mark.filterwarnings("ignore"),
]

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Say hello."}]
TEXT_PREFIXES = ("text-completion-openai/", "openai/", "hosted_vllm/")
CHAT_PREFIXES = ("openai/", "hosted_vllm/")


@pytest.fixture(scope="module")
def litellm() -> Any:
    """Imported here: at its import it would fetch a list of prices, unless it is told to use its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


@pytest.fixture
def where(service: Service) -> dict[str, Any]:
    """What each call needs to reach the service, once and in time."""
    return {"api_base": f"{service.url}/v1", "api_key": service.key, "num_retries": 0, "timeout": 120}


@pytest.mark.parametrize("prefix", TEXT_PREFIXES)
def test_text_completion(litellm: Any, where: dict[str, Any], prefix: str) -> None:
    answer = litellm.text_completion(model=prefix + MODEL, prompt=PROMPT, max_tokens=4, temperature=0, **where)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize("prefix", TEXT_PREFIXES)
def test_streamed_text_completion_gives_the_same_text(litellm: Any, where: dict[str, Any], prefix: str) -> None:
    asked = {"model": prefix + MODEL, "prompt": PROMPT, "max_tokens": 6, "temperature": 0, **where}
    whole = litellm.text_completion(**asked)
    chunks = list(litellm.text_completion(**asked, stream=True))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]


def test_text_completion_of_several_prompts_with_logprobs_and_a_seed(litellm: Any, where: dict[str, Any]) -> None:
    asked = {"prompt": [PROMPT, "Two plus two is"], "n": 2, "seed": 3, "logprobs": 2, "max_tokens": 4, **where}
    answers = [litellm.text_completion(model=f"text-completion-openai/{MODEL}", **asked) for _ in range(2)]
    texts = [[choice.text for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4
    for choice in answers[0].choices:
        assert "".join(choice.logprobs.tokens) == choice.text


def test_parameters_of_this_api_pass_through(litellm: Any, where: dict[str, Any]) -> None:
    asked = {"model": f"text-completion-openai/{MODEL}", "prompt": PROMPT, "max_tokens": 4, **where}
    greedy = litellm.text_completion(**asked, temperature=0)
    likeliest = litellm.text_completion(**asked, temperature=1.5, extra_body={"top_k": 1})
    assert likeliest.choices[0].text == greedy.choices[0].text


@pytest.mark.parametrize("prefix", CHAT_PREFIXES)
def test_chat(litellm: Any, where: dict[str, Any], prefix: str) -> None:
    asked = {"model": prefix + MODEL, "messages": MESSAGES, "max_tokens": 8, "seed": 4, **where}
    whole = litellm.completion(**asked)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 8
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_asynchronous_calls(litellm: Any, where: dict[str, Any]) -> None:
    asked = {"model": f"hosted_vllm/{MODEL}", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, **where}
    answers = await asyncio.gather(*[litellm.acompletion(**asked) for _ in range(4)])
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    stream = await litellm.acompletion(**asked, stream=True)
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert said == answers[0].choices[0].message.content
    # They would outlive the event loop, and be closed in that of another test.
    await litellm.close_litellm_async_clients()


@pytest.mark.parametrize("prefix", TEXT_PREFIXES)
def test_errors_become_those_of_litellm(litellm: Any, where: dict[str, Any], prefix: str) -> None:
    asked = {"model": prefix + MODEL, "prompt": PROMPT, **where}
    with pytest.raises(litellm.AuthenticationError):
        litellm.text_completion(**asked | {"api_key": "sk-wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.text_completion(**asked | {"model": f"{prefix}no-such-model"})
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.text_completion(**asked, temperature=3)


@pytest.mark.parametrize("prefix", CHAT_PREFIXES)
def test_errors_of_chat_become_those_of_litellm(litellm: Any, where: dict[str, Any], prefix: str) -> None:
    asked = {"model": prefix + MODEL, "messages": MESSAGES, **where}
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**asked | {"api_key": "sk-wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked | {"model": f"{prefix}no-such-model"})
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        litellm.completion(**asked, top_p=7)
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        list(litellm.completion(**asked, top_p=7, stream=True))
