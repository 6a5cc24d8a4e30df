"""What the configured models need before they can be served, made once, with its progress told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deployments.engine.native.loading import needs_preparing
from deployments.model_source import resolve
from serve_app.config import SetupError
from serve_app.launcher.serve_file import ServeFile

_COMMAND = "from serve_app.cli import main; main()"


def prepare_models(serve_file: ServeFile, home: Path, say: Callable[[str], None]) -> None:
    """Finds or makes the files of the configured models. Raises ModelSourceError and SetupError."""
    directories = {
        model: resolve(model.source, home, on_progress=say, verify_digests=True)
        for model in serve_file.config.graph.models
    }
    if not any(needs_preparing(directory, model.engine, home) for model, directory in directories.items()):
        return
    # In a process of its own: quantising takes a gigabyte, which this process would keep.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", _COMMAND, "model", "prepare", "--config", str(serve_file.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stderr or ():
                say(line.rstrip())
        finally:
            if process.poll() is None:
                process.terminate()
    if process.returncode:
        raise SetupError("the models could not be prepared; the reason stands above")
