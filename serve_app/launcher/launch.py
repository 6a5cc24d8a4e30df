"""The whole life of a service on this machine: prepare, start, tell, watch, stop."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import psutil
import typer

from deployments.model_files import ModelSourceError
from serve_app.config import Home, Secrets, SetupError
from serve_app.launcher import local_state, ports, processes
from serve_app.launcher.banner import banner
from serve_app.launcher.first_key import ensure_first_key
from serve_app.launcher.haproxy import has_haproxy, write_haproxy
from serve_app.launcher.models import prepare_models
from serve_app.launcher.profile import Profile, choose_profile, environment
from serve_app.launcher.serve_file import ServeFile, read_serve_file
from serve_app.launcher.stop import Stopped, StopSignals

Say = Callable[[str], None]

_POLL_S = 0.25
_WATCH_S = 1.0


def main(*, port: int, config: Path, profile: str) -> int:
    """Runs the service until it is told to stop; returns the exit status. What goes wrong is told in one sentence."""
    say = partial(typer.echo, file=sys.stdout)
    signals = StopSignals()
    try:
        with signals:
            _run(
                read_serve_file(config, http_port=port),
                choose_profile(profile, platform=sys.platform, has_haproxy=has_haproxy()),
                port=port,
                say=say,
                signals=signals,
            )
    except Stopped:
        return 0
    except (SetupError, ModelSourceError) as error:
        if signals.is_stopped:  # the signal made it fail
            return 0
        typer.echo(f"tritext: {error}", err=True)
        return 1
    return 0


def _run(serve_file: ServeFile, profile: Profile, *, port: int, say: Say, signals: StopSignals) -> None:
    started_at = time.monotonic()
    home = Home().home
    local_state.prepare_home(home)
    with local_state.only_one(home):
        runtime_dir = local_state.make_runtime_dir(home)
        processes.end_all(runtime_dir)  # of a start that was killed
        ports.require_free(port)
        prepare_models(serve_file, home, say)
        secrets = Secrets.load(create=True)
        database_url = secrets.database_url(serve_file.config)
        key = ensure_first_key(home / "first_key", database_url=database_url, pepper=secrets.pepper())
        token_file = home / "ray_token"
        local_state.ensure_secret(token_file)
        chosen = ports.choose(port)
        os.environ.pop("RAY_ADDRESS", None)  # it would lead to somebody else's cluster
        os.environ.update(
            environment(
                profile,
                runtime_dir=runtime_dir,
                token_file=token_file,
                ports=chosen,
                num_threads=psutil.cpu_count(logical=False) or 1,
                haproxy=write_haproxy(runtime_dir, chosen) if profile is Profile.THROUGHPUT else None,
                longest_answer_s=serve_file.config.longest_answer_s,
            )
        )
        with _quiet(runtime_dir / "launcher.log"):
            try:
                vital = _start(serve_file, profile, runtime_dir=runtime_dir, chosen=chosen, say=say, signals=signals)
                text = banner(
                    port=port,
                    key=key,
                    model=serve_file.config.graph.models[0].id,
                    status_command=_status_command(token_file, chosen.dashboard),
                    measurements_port=chosen.measurements,
                )
                say(f"Ready after {time.monotonic() - started_at:.0f} s.\n\n{text}")
                while True:
                    signals.check()
                    _require_alive(vital)
                    time.sleep(_WATCH_S)
            finally:
                signals.ignore()
                _stop(runtime_dir, say)


def _start(
    serve_file: ServeFile, profile: Profile, *, runtime_dir: Path, chosen: ports.Ports, say: Say, signals: StopSignals
) -> list[psutil.Process]:
    """Returns Ray's vital processes once the service answers. Raises SetupError."""
    started_at = time.monotonic()
    say(f"Starting Ray ({profile.value} profile) ...")
    # Imported only here: Ray reads the environment, which has just been set, when it is imported.
    from serve_app.launcher import cluster

    signals.check()
    temp_dir = runtime_dir / "ray"
    shutil.rmtree(temp_dir, ignore_errors=True)
    temp_dir.mkdir(mode=0o700)
    cluster.start_ray(temp_dir, num_cpus=max(2, os.cpu_count() or 1), measurements_port=chosen.measurements)
    signals.listen()  # Ray has put its own handlers in place
    signals.check()
    vital = cluster.vital_processes()
    say("Starting the deployments ...")
    cluster.deploy(serve_file.document)
    up: set[str] = set()
    while True:
        signals.check()
        _require_alive(vital)
        application = cluster.status(serve_file.app_name)
        if application is not None:
            if reason := cluster.failure(application):
                raise SetupError(f"{reason} (logs: {temp_dir}/session_latest/logs/serve)")
            for name in sorted(cluster.deployments_up(application) - up):
                up.add(name)
                say(f"  {name} is up ({time.monotonic() - started_at:.0f} s)")
            if application.status == "RUNNING" and ports.answers(chosen.http, "/ready"):
                cluster.start_status_server(chosen.dashboard)
                return vital
        time.sleep(_POLL_S)


def _require_alive(vital: list[psutil.Process]) -> None:
    for process in vital:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise SetupError("Ray has stopped unexpectedly; start the service again")


def _stop(runtime_dir: Path, say: Say) -> None:
    say("\nStopping ...")
    known = processes.descendants()
    if "ray" in sys.modules:
        from serve_app.launcher import cluster

        cluster.stop_ray()
    left = processes.end_all(runtime_dir, known)
    if left:
        say(f"tritext: these processes could not be ended: {', '.join(str(process.pid) for process in left)}")
    else:
        say("Stopped.")


def _status_command(token_file: Path, dashboard_port: int) -> str:
    serve_command = Path(sys.executable).with_name("serve")
    return (
        f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_file} "
        f"{serve_command} status -a http://{ports.HOST}:{dashboard_port}"
    )


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """What Ray prints in this process goes to a file: it repeats there what its other processes report."""
    with log.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        yield
