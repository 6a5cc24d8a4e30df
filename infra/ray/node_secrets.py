"""Fetches the secrets of a node of infra/ray/aws.yaml, by its machine's rights, into files of their owner alone."""

import json
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import quote

import boto3


def main(name: str, region: str, directory: Path) -> None:
    """Writes `ray_token`, and `node.env` with what the node's processes need in their environment.

    `name` is that of the CloudFormation stack's parameters (infra/aws/tritext.yaml).
    """
    client = boto3.client("secretsmanager", region_name=region)

    def secret(suffix: str) -> str:
        value: str = client.get_secret_value(SecretId=f"{name}/{suffix}")["SecretString"]
        return value

    token_file = directory / "ray_token"
    database = json.loads(secret("database"))
    variables = {
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "TRITEXT_KEY_PEPPER": secret("key-pepper"),
        "TRITEXT_DATABASE_URL": database_url(**database),
        "AWS_DEFAULT_REGION": region,
    }
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(token_file, secret("ray-token"))
    write_private(directory / "node.env", "".join(f"{key}={shlex.quote(value)}\n" for key, value in variables.items()))


def database_url(
    *, username: str, password: str, host: str, port: int = 5432, dbname: str = "tritext", **_: str
) -> str:
    """What Secrets Manager keeps of a database, as a URL."""
    return f"postgresql://{quote(username, safe='')}:{quote(password, safe='')}@{host}:{port}/{dbname}?sslmode=require"


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, readable by its owner only."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    unfinished.replace(path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path.home() / ".tritext")
