"""What the launcher prints once the service answers. Pure."""

import json
import shlex
from collections.abc import Mapping
from typing import Any


def banner(*, port: int, key: str, model: str, status_command: str, measurements_port: int) -> str:
    """Address, key, and one request for each API that works when it is copied to a terminal."""
    address = f"http://127.0.0.1:{port}"
    requests = {
        "AITextGen": ("/v1/aitextgen/generate", {"prompt": "Once upon a time", "max_length": 60}),
        "InferKit": (
            f"/v1/models/{model}/generate",
            {"prompt": {"text": "The old lighthouse keeper"}, "length": 200, "streamResponse": True},
        ),
        "TotalGPT": ("/v1/completions", {"model": model, "prompt": "The capital of France is", "max_tokens": 20}),
    }
    lines = [f"The service answers at {address}", f"API key: {key}", ""]
    for name, (path, body) in requests.items():
        lines += [f"# {name}", curl(address + path, key, body), ""]
    lines += [
        f"Documentation: {address}/docs",
        f"Deployments: {status_command}",
        f"Measurements for Prometheus: http://127.0.0.1:{measurements_port}/metrics",
        "Ctrl-C stops the service.",
    ]
    return "\n".join(lines)


def curl(url: str, key: str, body: Mapping[str, Any]) -> str:
    """One line for a POSIX shell."""
    return shlex.join(
        [
            "curl", "-sN", url,
            "-H", f"Authorization: Bearer {key}",
            "-H", "Content-Type: application/json",
            "-d", json.dumps(body),
        ]
    )  # fmt: skip
