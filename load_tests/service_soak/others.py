"""Requests that generate nothing: bad ones, each with the refusal that is due, and pages that are read."""

from dataclasses import dataclass, field
from typing import Any

from load_tests.service_soak.exchange import End
from load_tests.service_soak.generation import TIMEOUT, Asking


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request and the status that it must be answered with. key: instead of the client's; text: instead of JSON."""

    status: int
    method: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    text: str | None = None


_COMPLETIONS = "/v1/completions"
_REFUSALS = (
    Refusal(400, "POST", _COMPLETIONS, {"model": "standard", "prompt": "x", "max_tokens": -1}),
    Refusal(400, "POST", _COMPLETIONS, {"model": "standard", "prompt": "x", "temperature": "hot"}),
    Refusal(400, "POST", _COMPLETIONS, text='{"model": "standard", "prompt": '),
    Refusal(400, "POST", "/v1/chat/completions", {"model": "standard", "messages": []}),
    Refusal(400, "POST", "/v1/aitextgen/generate", {"prompt": "x", "max_lenght": 5}),
    Refusal(400, "POST", "/v1/aitextgen/generate", {"prompt": ""}),
    Refusal(400, "POST", "/v1/models/standard/generate", {"prompt": {"text": "x"}, "length": 5}),
    Refusal(401, "POST", _COMPLETIONS, {"model": "standard", "prompt": "x"}, key="tt_wrong"),
    Refusal(403, "GET", "/v1/admin/accounts"),
    Refusal(403, "POST", "/v1/aitextgen/webhooks/create", {"url": "https://example.com", "events": ["webhook.test"]}),
    Refusal(404, "POST", _COMPLETIONS, {"model": "ft_model_of_nobody", "prompt": "x"}),
    Refusal(404, "GET", "/v1/no/such/page"),
    Refusal(405, "DELETE", _COMPLETIONS),
    Refusal(413, "POST", _COMPLETIONS, {"model": "standard", "prompt": "x" * 1_100_000}),
)
_PAGES = (
    "/health", "/ready", "/docs", "/openapi.json", "/v1/models", "/v1/models/standard", "/v1/account", "/v1/usage",
    "/v1/usage?group_by=day,dialect&format=csv",
)  # fmt: skip
_TOKENS = {
    "/utils/token_counter": {"model": "standard", "prompt": "How many tokens?"},
    "/tokenize": {"model": "standard", "prompt": "How many tokens?"},
}


async def bad(asking: Asking) -> None:
    """One of the refusals; for a key with the scope `inference` alone."""
    refusal = asking.rng.choice(_REFUSALS)
    exchange = asking.findings.begin("bad")
    exchange.end = End.REFUSED
    headers = {
        "Authorization": f"Bearer {refusal.key or asking.key}",
        "X-Request-Id": exchange.id,
        "Content-Type": "application/json",
    }
    options: dict[str, Any] = {} if refusal.text is None else {"data": refusal.text}
    if refusal.body:
        options["json"] = refusal.body
    async with asking.session.request(refusal.method, refusal.path, headers=headers, timeout=TIMEOUT, **options) as one:
        asking.findings.answers["bad", one.status] += 1
        found = await one.json()
        if one.status != refusal.status or "message" not in found["error"]:
            asking.findings.problem(f"{refusal.method} {refusal.path}: {one.status} for {refusal.status}, {found}")


async def page(asking: Asking) -> None:
    """A page, or a text's tokens."""
    path = asking.rng.choice((*_PAGES, *_TOKENS))
    method = "POST" if path in _TOKENS else "GET"
    options: dict[str, Any] = {"json": _TOKENS[path]} if path in _TOKENS else {}
    headers = {"Authorization": f"Bearer {asking.key}"}
    async with asking.session.request(method, path, headers=headers, timeout=TIMEOUT, **options) as answer:
        asking.findings.answers["page", answer.status] += 1
        await answer.read()
        if answer.status != 200:
            asking.findings.problem(f"{path}: {answer.status}")


async def limited(asking: Asking) -> None:
    """A request of a key with narrow limits: an answer, or 429 that says when to come again."""
    exchange = asking.findings.begin("limited")
    headers = {"Authorization": f"Bearer {asking.key}", "X-Request-Id": exchange.id}
    body = {"prompt": asking.prompt(), "max_length": 4}
    async with asking.session.post("/v1/aitextgen/generate", json=body, headers=headers, timeout=TIMEOUT) as answer:
        asking.findings.answers["limited", answer.status] += 1
        await answer.read()
        exchange.end = End.COMPLETE if answer.status == 200 else End.REFUSED
        is_due = answer.status == 429 and int(answer.headers["Retry-After"]) >= 1
        if answer.status != 200 and not is_due:
            asking.findings.problem(f"{exchange.kind} {exchange.id}: {answer.status} {dict(answer.headers)}")
