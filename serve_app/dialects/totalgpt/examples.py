"""Example requests, answers and streams for the reference pages."""

from typing import Any

COMPLETION_REQUESTS: dict[str, dict[str, Any]] = {
    "documented": {
        "model": "SmolLM2-135M-Instruct",
        "prompt": "Generate a Bible question with four multiple-choice answers (one correct, three incorrect).",
        "max_tokens": 7000,
        "temperature": 0.7,
        "top_k": 40,
        "repetition_penalty": 1.2,
    },
    "streamed": {
        "model": "SmolLM2-135M-Instruct",
        "prompt": "Once upon a time",
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "scored": {
        "model": "SmolLM2-135M-Instruct",
        "prompt": "The sea is deep",
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
    },
}
_COMPLETION_COMMON = {
    "id": "cmpl-5f1c",
    "object": "text_completion",
    "created": 1767225600,
    "model": "SmolLM2-135M-Instruct",
    "system_fingerprint": "fp_0123456789ab",
}
_USAGE = {
    "prompt_tokens": 4,
    "completion_tokens": 5,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 0},
}
COMPLETION_ANSWER = {
    **_COMPLETION_COMMON,
    "choices": [
        {
            "index": 0,
            "text": ", there was light.",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "prompt_logprobs": None,
        }
    ],
    "usage": _USAGE,
}
COMPLETION_EVENTS: list[dict[str, Any]] = [
    *(
        {
            **_COMPLETION_COMMON,
            "choices": [
                {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
            ],
            "usage": None,
        }
        for text, finish_reason in ((", there", None), (" was light.", "stop"))
    ),
    {**_COMPLETION_COMMON, "choices": [], "usage": _USAGE},
]


CHAT_REQUESTS: dict[str, dict[str, Any]] = {
    "simple": {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 100,
    },
    "streamed": {
        "model": "SmolLM2-135M-Instruct",
        "messages": [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "What is the sea?"},
        ],
        "max_tokens": 100,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
}
_CHAT_COMMON = {
    "id": "chatcmpl-5f1c",
    "object": "chat.completion",
    "created": 1767225600,
    "model": "SmolLM2-135M-Instruct",
    "system_fingerprint": "fp_0123456789ab",
}
CHAT_ANSWER = {
    **_CHAT_COMMON,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Red, green and blue.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": _USAGE,
}
CHAT_EVENTS = [
    {
        **_CHAT_COMMON,
        "object": "chat.completion.chunk",
        "choices": [
            {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        ],
    }
    for delta, finish_reason in (
        ({"role": "assistant", "content": ""}, None),
        ({"content": "The sea is"}, None),
        ({"content": " salt water."}, "stop"),
    )
]
