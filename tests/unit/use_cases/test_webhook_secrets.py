"""Sealed secrets: read by who has the pepper, for the endpoint that they are of, and by nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.use_cases.webhook_secrets import SealedSecrets, UnreadableSecret
from serve_app.webhooks.signing import new_secret

SECRETS = SealedSecrets(b"a pepper of 32 bytes for the tests")


def test_what_is_sealed_can_be_read_and_does_not_show() -> None:
    secret = new_secret()
    sealed = SECRETS.seal("whep_1", secret)
    assert SECRETS.open("whep_1", sealed) == secret
    assert secret.encode() not in sealed
    assert SECRETS.seal("whep_1", secret) != sealed


def test_another_endpoint_or_another_pepper_reads_nothing() -> None:
    sealed = SECRETS.seal("whep_1", new_secret())
    with pytest.raises(UnreadableSecret):
        SECRETS.open("whep_2", sealed)
    with pytest.raises(UnreadableSecret):
        SealedSecrets(b"another pepper of 32 bytes in tests").open("whep_1", sealed)


@given(st.binary(max_size=100))
def test_anything_else_is_no_secret(sealed: bytes) -> None:
    with pytest.raises(UnreadableSecret):
        SECRETS.open("whep_1", sealed)
