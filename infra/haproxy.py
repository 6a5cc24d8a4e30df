"""Writes what Serve starts as HAProxy on nodes and in the image; why: serve_app/launcher/haproxy.py."""

import sys
from pathlib import Path

from serve_app.launcher.haproxy import write_haproxy
from serve_app.launcher.ports import Ports

PORTS = Ports(http=8000, dashboard=8265, fallback=8500, stats=8404, metrics=9101, measurements=8080)
"""The ports of a machine or a pod of its own: Serve's defaults, and KubeRay's for measurements."""

if __name__ == "__main__":
    write_haproxy(Path(sys.argv[1]), PORTS)
