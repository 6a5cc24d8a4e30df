"""Where a configured model's files lie on this machine; a model that a Python package carries is prepared once."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from deployments.model_files import ModelSourceError
from deployments.model_preparation.cache import prepared
from deployments.model_preparation.packages import find_packaged_model

PACKAGE_PREFIX = "package:"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")

logger = logging.getLogger(__name__)


def resolve(
    source: str,
    home: Path | None = None,
    *,
    on_progress: Callable[[str], None] | None = None,
    verify_digests: bool = False,
) -> Path:
    """The directory, in Hugging Face layout, of the model that `source` names (see `ModelConfig.source`).

    A packaged model is converted into `models` under `home` (None: `default_home()`) on the first call, by one process
    at a time. Later calls check that its files are there with the right sizes, and with `verify_digests` that they
    hold the right bytes (half a second for half a gigabyte); a damaged copy is made again. `on_progress` is told, in
    sentences, what takes time.
    Raises ModelSourceError.
    """
    report = on_progress or (lambda message: logger.info("%s", message))
    if source.startswith(PACKAGE_PREFIX):
        model = find_packaged_model(source.removeprefix(PACKAGE_PREFIX))

        def make(directory: Path) -> None:
            from deployments.model_preparation.convert import convert  # needs libraries that later calls do not

            convert(model, directory, report)

        return prepared(
            (home or default_home()) / "models" / model.directory_name,
            make,
            report=report,
            verify_digests=verify_digests,
        )
    return _checked(Path(source).expanduser())


def default_home() -> Path:
    """The directory of local state: TRITEXT_HOME, or ~/.tritext."""
    return Path(os.environ.get("TRITEXT_HOME") or Path.home() / ".tritext")


def _checked(directory: Path) -> Path:
    """The directory, if a model can be loaded from it."""
    if not directory.is_dir():
        raise ModelSourceError(f"the model directory {directory} does not exist")
    missing = []
    if not (directory / "config.json").is_file():
        missing.append("config.json")
    missing.extend(_missing_weights(directory))
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        missing.append("tokenizer.json")
    if missing:
        raise ModelSourceError(f"the model directory {directory} is incomplete: it has no {', no '.join(missing)}")
    return directory


def _missing_weights(directory: Path) -> list[str]:
    """Names of weight files that should be there and are not."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelSourceError(f"{index} is not a safetensors index: {error!r}") from error
        return sorted(shard for shard in shards if not (directory / shard).is_file())
    if any(directory.glob("*.safetensors")):
        return []
    return ["weights (model.safetensors)"]
