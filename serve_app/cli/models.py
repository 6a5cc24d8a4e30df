"""`tritext model`: models on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.config import ModelConfig
from deployments.model_source import resolve
from serve_app.cli.options import DEFAULT_PORT, LOCAL_CONFIG, Config
from serve_app.cli.output import say
from serve_app.config import Home, SetupError
from serve_app.launcher.serve_file import read_serve_file

app = typer.Typer(no_args_is_help=True, help="Models on this machine.")


@app.callback()
def model() -> None:
    """Models on this machine."""


@app.command("prepare")
def prepare_models(
    config: Config = LOCAL_CONFIG,
    source: Annotated[
        str | None, typer.Option(help="A model directory, or `package:` and a name, in place of the configured models.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a model directory of its own, to be used as `source`: it starts at once.")
    ] = None,
) -> None:
    """Make the files of the configured models, so that the next start of the service need not."""
    home = Home().home
    if source is None:
        models = read_serve_file(config, http_port=DEFAULT_PORT).config.graph.models
    else:
        models = (ModelConfig(id=Path(source).name, source=source),)
    if output is not None and len(models) != 1:
        raise SetupError("--output takes one model, and several are configured: name one with --source")
    for model in models:
        directory = resolve(model.source, home, on_progress=say, verify_digests=True)
        if output is None:
            _prepare(model, directory, home)
        else:
            _export(directory, output)
        typer.echo(f"{model.id}  {output or directory}")


def _prepare(model: ModelConfig, directory: Path, home: Path) -> None:
    # Imported here, and below: they bring libraries that no other command needs.
    from deployments.engine.native.architecture import Unsupported
    from deployments.engine.native.loading import prepare

    try:
        prepare(directory, model.engine, home, report=say)
    except Unsupported as reason:
        say(f"{model.id} runs on torch, not on the native kernels: {reason}")


def _export(directory: Path, output: Path) -> None:
    from deployments.engine.native.architecture import Unsupported
    from deployments.engine.native.loading import prepare_directory

    try:
        prepare_directory(directory, output, report=say)
    except Unsupported as reason:
        raise SetupError(f"{directory} cannot be prepared: {reason}") from None
