"""A Serve configuration file, read and checked before anything is started. Knows no Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.config import AppConfig, SetupError
from serve_app.use_cases.models import ModelCatalog

IMPORT_PATH = "serve_app.app:build"


@dataclass(frozen=True, slots=True)
class ServeFile:
    """`document` is what Serve gets, `app_name` and `config` are those of the application in it that is ours."""

    path: Path
    document: dict[str, Any]
    app_name: str
    config: AppConfig


def read_serve_file(path: Path, *, http_port: int) -> ServeFile:
    """The file, to be served on this port. Raises SetupError."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise SetupError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SetupError(f"the configuration {path} is no YAML: {' '.join(str(error).split())}") from None
    applications = document.get("applications") if isinstance(document, dict) else None
    if not isinstance(applications, list):
        applications = []
    ours = [app for app in applications if isinstance(app, dict) and app.get("import_path") == IMPORT_PATH]
    if len(ours) != 1:
        raise SetupError(f"the configuration {path} must hold one application with the import path {IMPORT_PATH}")
    try:
        config = AppConfig.model_validate(ours[0].get("args") or {})
        ModelCatalog(config.graph.models)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SetupError(f"the `args` in {path} are not valid: {problems}") from None
    except ValueError as error:
        raise SetupError(f"the `args` in {path} are not valid: {error}") from None
    document["http_options"] = {**(document.get("http_options") or {}), "port": http_port}
    return ServeFile(path, document, ours[0].get("name", "default"), config)
