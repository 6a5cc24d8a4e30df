"""`tritext model`: models on this machine."""

import typer

from deployments.model_source import resolve
from serve_app.cli.options import DEFAULT_PORT, LOCAL_CONFIG, Config
from serve_app.cli.output import say
from serve_app.config import Home
from serve_app.launcher.serve_file import read_serve_file

app = typer.Typer(no_args_is_help=True, help="Models on this machine.")


@app.callback()
def model() -> None:
    """Models on this machine."""


@app.command("prepare")
def prepare_models(config: Config = LOCAL_CONFIG) -> None:
    """Make the files of the configured models, so that the next start of the service need not."""
    # Imported here: they bring libraries that no other command needs.
    from deployments.engine.native.architecture import Unsupported
    from deployments.engine.native.loading import prepare

    home = Home().home
    for model in read_serve_file(config, http_port=DEFAULT_PORT).config.graph.models:
        directory = resolve(model.source, home, on_progress=say, verify_digests=True)
        try:
            prepare(directory, model.engine, home, report=say)
        except Unsupported as reason:
            say(f"{model.id} runs on torch, not on the native kernels: {reason}")
        typer.echo(f"{model.id}  {directory}")
