"""When the tokens of a streamed completion came, read from its event stream line by line. Pure; knows no sockets."""

import json


class StreamFailed(RuntimeError):
    """The stream told an error, or ended without its usage or without any text."""


class StreamTimer:
    """Takes the lines of an OpenAI-style stream of completions, each with the time at which it was read."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s = 0.0
        self.num_tokens = 0

    def line(self, line: bytes, now_s: float) -> None:
        """A line as it was read; what is no event with JSON counts for nothing. Raises StreamFailed."""
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if not data.startswith(b"{"):
            return  # [DONE]
        event = json.loads(data)
        if event.get("error"):
            raise StreamFailed(str(event["error"])[:300])
        if any(choice.get("text") for choice in event.get("choices") or ()):
            self.last_s = now_s
            if self.first_s is None:
                self.first_s = now_s
        if event.get("usage"):
            self.num_tokens = event["usage"]["completion_tokens"]

    def first(self) -> float:
        """When the first text came, once the stream has ended. Raises StreamFailed."""
        if self.first_s is None:
            raise StreamFailed("the stream ended without any text")
        if not self.num_tokens:
            raise StreamFailed("the stream ended without its usage")
        return self.first_s
