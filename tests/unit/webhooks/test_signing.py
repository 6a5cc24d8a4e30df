"""Signatures that receivers' libraries accept: the specification's own, and OpenAI's client."""

import base64
import json
import time

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from serve_app.webhooks.signing import new_secret, signed_headers

SECRET, OLD_SECRET, STRANGE_SECRET = (new_secret() for _ in range(3))
BODY = json.dumps({"type": "fine_tuning.job.succeeded", "data": {"id": "ftjob-1"}, "text": "Grüße"}).encode()


def unwrap(body: bytes, headers: dict[str, str], secret: str) -> object:
    with openai.OpenAI(api_key="none", webhook_secret=secret) as client:
        return client.webhooks.unwrap(body, headers)


def test_the_libraries_accept_what_is_signed() -> None:
    headers = dict(signed_headers("evt_1", time.time(), BODY, [SECRET]))
    assert Webhook(SECRET).verify(BODY, headers) == json.loads(BODY)
    assert unwrap(BODY, headers, SECRET)


def test_during_a_rotation_both_secrets_sign() -> None:
    headers = dict(signed_headers("evt_1", time.time(), BODY, [SECRET, OLD_SECRET]))
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(BODY, headers)
        assert unwrap(BODY, headers, secret)


def test_the_libraries_refuse_what_was_changed() -> None:
    headers = dict(signed_headers("evt_1", time.time(), BODY, [SECRET]))
    changed = [
        (BODY + b" ", headers, SECRET),
        (BODY, headers | {"webhook-id": "evt_2"}, SECRET),
        (BODY, headers | {"webhook-timestamp": str(int(time.time()) + 1)}, SECRET),
        (BODY, headers, STRANGE_SECRET),
        (BODY, dict(signed_headers("evt_1", time.time() - 301, BODY, [SECRET])), SECRET),
    ]
    for body, sent, secret in changed:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, sent)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(body, sent, secret)


@given(st.from_regex(r"[a-zA-Z0-9_-]{1,30}", fullmatch=True), st.text())
def test_any_text_can_be_sent(message_id: str, text: str) -> None:
    body = json.dumps({"text": text}, ensure_ascii=True).encode()
    headers = dict(signed_headers(message_id, time.time(), body, [SECRET]))
    assert Webhook(SECRET).verify(body, headers) == {"text": text}


def test_an_id_with_a_full_stop_is_not_signed() -> None:
    with pytest.raises(ValueError, match="full stop"):
        signed_headers("evt.1", 0.0, b"", [SECRET])


def test_secrets_have_32_bytes_and_differ() -> None:
    assert len({SECRET, OLD_SECRET, STRANGE_SECRET}) == 3
    assert SECRET.startswith("whsec_")
    assert len(base64.b64decode(SECRET.removeprefix("whsec_"), validate=True)) == 32


def test_the_time_is_in_whole_seconds() -> None:
    assert signed_headers("evt_1", 1700000000.9, b"", [SECRET])["webhook-timestamp"] == "1700000000"
