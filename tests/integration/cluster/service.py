"""The service of infra/serve/cluster.yaml, with a tiny model, on machines of the kinds that it asks for."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.generate import SERVE_CONFIG

MODEL = "Qwen2.5-14B-Instruct"
SLEEPING_MODEL = "Qwen2.5-7B-Instruct"


def cluster_document(model: Path, objects: Path) -> dict[str, Any]:
    """infra/serve/cluster.yaml but for what runs on a GPU, and S3: the model is that of a directory, and so are
    the objects. What is asked for, where it runs and how many there are stays as it is."""
    document: dict[str, Any] = yaml.safe_load(SERVE_CONFIG.read_text("utf-8"))
    [application] = document["applications"]
    graph = application["args"]["graph"]
    for each in graph["models"]:
        each["source"] = str(model)
        each["engine"] = {"device": "cpu", "dtype": "float32", "kv_cache_bytes": 4 * 1024 * 1024}
    graph["adapters"] = {}
    graph["checkpoints"] = {"url": f"file://{objects}"}
    graph["trainer"] |= {"device": "cpu", "num_threads": 1}
    return document


def deployment(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Its part of the document, to be changed."""
    [application] = document["applications"]
    [found] = [each for each in application["deployments"] if each["name"] == name]
    result: dict[str, Any] = found
    return result


def new_key(document: Mapping[str, Any], directory: Path, variables: Mapping[str, str]) -> str:
    """A key to generate and to train, made by the command line. `directory` is for the configuration."""
    config = directory / "serve.yaml"
    config.write_text(yaml.safe_dump(document))
    program = [sys.executable, "-c", "from serve_app.cli import main; main()"]
    options = ["--scope", "inference", "--scope", "fine-tune", "--json", "--config", str(config)]
    done = subprocess.run(
        [*program, "keys", "create", *options],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    key: str = json.loads(done.stdout)["key"]
    return key
