"""Signatures of deliveries, by the specification Standard Webhooks 1.0. Pure, but for the making of secrets."""

import base64
import hmac
import secrets
from collections.abc import Iterable, Mapping

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A secret to sign with: `whsec_` and 32 secure random bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(message_id: str, at: float, body: bytes, signing_secrets: Iterable[str]) -> Mapping[str, str]:
    """The headers of one attempt: the message's id, the time of the attempt, and a signature by each secret.

    at: seconds since 1970. body: the very bytes that are sent. Raises ValueError where the id holds a full stop, which
    would leave open where it ends.
    """
    if "." in message_id:
        raise ValueError("the id of a message must not hold a full stop")
    timestamp = str(int(at))
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(content, secret) for secret in signing_secrets),
    }


def _signature(content: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, content, "sha256")).decode()
