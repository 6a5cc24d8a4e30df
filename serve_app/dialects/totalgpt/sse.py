"""Server-sent events as OpenAI's clients read them: unnamed `data:` events and a last `[DONE]`. Knows no payload."""

from typing import Any

from serve_app.http.json_text import to_json

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which every parser of server-sent events skips."""


def event(payload: dict[str, Any]) -> bytes:
    """One event that carries `payload`. JSON never holds a raw line break, so one `data:` line is always enough.

    Raises ValueError where the payload holds NaN or an infinity, which JSON cannot spell.
    """
    return b"data: " + to_json(payload) + b"\n\n"
