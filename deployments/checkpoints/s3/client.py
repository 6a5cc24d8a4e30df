"""A client of an S3 server, and what its errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from deployments.checkpoints.store import UnusableStore
from deployments.errors import ObjectNotFound, ObjectStoreError

TAKEN = "PreconditionFailed"
"""An answer: there is such an object."""
CONFLICT = "ConditionalRequestConflict"
"""No answer: another caller was at the same object, try again."""

NO_ANSWER = (BotoCoreError, ResponseParserError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take to let a client connect, and between pieces of an answer; how often it is asked.

    The pauses between are short: below a second together, below half a minute where the server asks for patience. So a
    request to a server that is down fails at once, and one to a server that says nothing after about 200 s.
    """

    connect_s: float = 10.0
    read_s: float = 30.0
    attempts: int = 5


PATIENCE = Patience()


def open_client(
    *, endpoint_url: str | None, region: str | None, max_connections: int, patience: Patience, signed: bool = True
) -> Any:
    """boto3's client, for any number of threads. Not signed: with no credentials.

    Nothing is asked of the server yet; but where the environment has no credentials, boto3 looks for them elsewhere.

    A server at an http:// address is asked directly, whatever the environment says of proxies and certificates.
    Raises UnusableStore if there are no credentials, or the settings or what boto3 finds are no good.
    """
    plain = endpoint_url is not None and endpoint_url.lower().startswith("http://")
    try:
        session = boto3.session.Session()
        client = session.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region or session.region_name or "us-east-1",
            verify=False if plain else None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": patience.attempts},
                connect_timeout=patience.connect_s,
                read_timeout=patience.read_s,
                max_pool_connections=max_connections,
                proxies={} if plain else None,
                signature_version=None if signed else UNSIGNED,
                # A bucket in the host's name needs DNS for each bucket, which few servers but AWS have.
                s3={"addressing_style": "path" if endpoint_url else "auto"},
                # Each object is sent with its SHA-256 and verified by it: no other checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        found = session.get_credentials() if signed else None
    except (BotoCoreError, ValueError) as error:
        raise UnusableStore(f"the S3 client cannot be set up: {error}") from error
    if signed and found is None:
        raise UnusableStore("there are no credentials for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")
    return client


def code_of(error: ClientError) -> str:
    """The server's word for what went wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def as_store_errors(key: str) -> Iterator[None]:
    """Raises ObjectNotFound or ObjectStoreError for what boto3 raises."""
    try:
        yield
    except ClientError as error:
        code = code_of(error)
        if code in ("NoSuchKey", "404"):
            raise ObjectNotFound(f"there is no object {key}") from error
        raise ObjectStoreError(f"the object store answers {error.operation_name} with {code}") from error
    except NO_ANSWER as error:
        raise ObjectStoreError(f"the object store does not answer: {type(error).__name__}") from error
