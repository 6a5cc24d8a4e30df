"""Parameters that clients of this dialect know and this service cannot honour: refused, never ignored. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from deployments.errors import InvalidParameter

GENERATION = (
    "suffix",
    "use_beam_search",
    "length_penalty",
    "prompt_embeds",
    "logits_processors",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
)
CHAT = (
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "modalities",
    "audio",
    "chat_template",
    "chat_template_kwargs",
    "documents",
)
COUNTING = ("contents", "tools", "system")
TOKENIZING = ("tools", "chat_template", "chat_template_kwargs", "documents")

_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "chat_template_kwargs": ({},),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
}


def refuse_unsupported(body: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises InvalidParameter for the first of these names whose value asks for something.

    null, false, the empty string and the empty list ask for nothing; neither do values that only name the default.
    """
    for name in names:
        value = body.get(name)
        if value is None or value is False or value in ("", []):
            continue
        if not isinstance(value, bool) and value in _HARMLESS.get(name, ()):
            continue
        raise InvalidParameter(f"{name} is not supported by this service; leave it out", name)
