"""What holds for every test: no model hub, few threads, a home of its own; and what the quick layers may not do."""

import ipaddress
import os
import socket
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

# Before anything imports the libraries that read them, once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes says more about the machine than about the code.
settings.register_profile("tritext", deadline=None, print_blob=True)
settings.load_profile("tritext")

pytest_plugins = ("tests.databases", "tests.seaweedfs")

TESTS = Path(__file__).parent
QUICK_LAYERS = ("unit", "api")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of local state: never the developer's own."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("TRITEXT_HOME", str(path))
    for secret in ("TRITEXT_KEY_PEPPER", "TRITEXT_DATABASE_URL"):
        monkeypatch.delenv(secret, raising=False)
    return path


@pytest.fixture(autouse=True)
def quick_layers_stay_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the quick layers, starting Ray or connecting to another machine is an error."""
    if request.path.relative_to(TESTS).parts[0] not in QUICK_LAYERS:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Ray's own import
        import ray
    monkeypatch.setattr(ray, "init", refuse_ray)
    connect = socket.socket.connect

    def connect_locally(connection: socket.socket, address: Any) -> None:
        if not is_local(address):
            raise AssertionError(f"a test of a quick layer connected to {address!r}")
        connect(connection, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


def refuse_ray(*_args: object, **_kwargs: object) -> NoReturn:
    raise AssertionError("a test of a quick layer started Ray; tests that need it belong in tests/integration")


def is_local(address: Any) -> bool:
    """Whether a socket address is on this machine; a Unix socket always is."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    return host in ("", "localhost") or ipaddress.ip_address(host.partition("%")[0]).is_loopback
