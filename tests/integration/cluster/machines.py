"""Several machines on this one: Linux namespaces with a network between them that reaches nobody else.

A machine has an address, ports and processes of its own, and can be lost as a real one is, with everything on it at
once. What it shares with this one are files, so a Unix socket of PostgreSQL, too.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from infra.generate import cluster_environment
from infra.haproxy import PORTS

ROOT = Path(__file__).parents[3]
GCS_PORT = 6379
MAX_ATTEMPTS = 4
"""Of starting Ray on a machine: it takes half a minute for a failure, and here all machines share a few cores."""

# Where Ray and HAProxy keep their files and sockets: on every machine its own.
_OWN_DIRECTORIES = ("/tmp/ray", "/tmp/haproxy-serve")  # noqa: S108  # their choice
_INIT = f"""
set -e
for each in {" ".join(_OWN_DIRECTORIES)}; do mount -t tmpfs none $each; done
echo up
exec >&-
sleep infinity & wait
"""


class Network:
    """A bridge. Its machines are numbered from 2 on: 10.x.y.2 and so on; this machine is number 1."""

    def __init__(self) -> None:
        self._name = f"trit{random.SystemRandom().randrange(16**6):06x}"
        self._prefix = f"10.{random.SystemRandom().randrange(180, 250)}.{random.SystemRandom().randrange(256)}"
        _ip("link", "add", self._name, "type", "bridge")
        _ip("address", "add", f"{self._prefix}.1/24", "dev", self._name)
        _ip("link", "set", self._name, "up")

    def address(self, number: int) -> str:
        return f"{self._prefix}.{number}"

    def join(self, number: int, pid: int) -> None:
        """Gives the network namespace of a process its place."""
        plug = self._plug(number)
        _ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", plug, "master", self._name, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.address(number)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *command], check=True)

    def cut_off(self, number: int) -> None:
        """Nothing reaches the place any more, and nothing comes from it; nobody is told."""
        _ip("link", "set", self._plug(number), "down")

    def remove(self) -> None:
        _ip("link", "delete", self._name)

    def _plug(self, number: int) -> str:
        return f"{self._name}p{number}"


class Machine:
    """Runs commands with `environment`; ends by `kill`. Whatever it started ends with it, and with this process."""

    def __init__(self, network: Network, number: int, environment: Mapping[str, str]) -> None:
        self._network = network
        self._number = number
        self.address = network.address(number)
        self.environment = environment
        self._process = subprocess.Popen(
            [
                "setpriv", "--pdeathsig=KILL",
                "unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child=KILL",
                "sh", "-c", _INIT,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # `unshare` has something to say when it is killed
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        with self._process.stdout as printed:
            assert printed.readline() == "up\n"
        [init] = psutil.Process(self._process.pid).children()
        self._init = init
        network.join(number, init.pid)
        self.run("hostname", self.address)  # how a machine without a way to the internet finds its address

    def command(self, *command: str) -> Sequence[str]:
        """As it runs there."""
        return [
            "nsenter",
            "--target",
            str(self._init.pid),
            "--net",
            "--pid",
            "--mount",
            "--uts",
            f"--wd={ROOT}",
            *command,
        ]

    def run(self, *command: str) -> str:
        """Returns what it printed."""
        done = subprocess.run(
            self.command(*command), env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def cut_off(self) -> None:
        """As its power supply or its cable would: it says nothing any more, not even that connections end."""
        self._network.cut_off(self._number)

    def kill(self) -> None:
        """Every process at once; the system ends their connections."""
        if self._process.poll() is None:
            self._init.kill()
            self._process.wait(30)


class Cluster:
    """Ray on machines that are set up as those of infra/ray. `start_head` comes first; `stop` comes last.

    variables: what else processes have in their environment, such as secrets.
    """

    head: Machine

    def __init__(self, network: Network, directory: Path, variables: Mapping[str, str]) -> None:
        self._network = network
        self._directory = directory
        self._variables = variables
        self._number = 1
        self._machines: list[Machine] = []
        token = directory / "ray_token"
        token.write_text(os.urandom(32).hex())
        token.chmod(0o600)
        subprocess.run([sys.executable, "-m", "infra.haproxy", directory], check=True, cwd=ROOT)

    def start_head(self, *options: str) -> None:
        """A machine without CPUs. options: of `ray start`."""
        is_head = ("--head", f"--port={GCS_PORT}", "--include-dashboard=false")
        self.head = self._start("head", *is_head, "--num-cpus=0", *options)

    def add(self, name: str, *, num_cpus: int, num_gpus: int = 0, kinds: Sequence[str] = ()) -> Machine:
        """A machine of these kinds: for each it offers the resource that infra/serve/cluster.yaml asks for."""
        resources = "{" + ", ".join(f'"{kind}": 1' for kind in kinds) + "}"
        return self._start(
            name,
            f"--address={self.head.address}:{GCS_PORT}",
            f"--num-cpus={num_cpus}",
            f"--num-gpus={num_gpus}",
            f"--resources={resources}",
        )

    def _start(self, name: str, *options: str) -> Machine:
        command = (
            str(Path(sys.executable).with_name("ray")),
            "start",
            f"--metrics-export-port={PORTS.measurements}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            *options,
        )
        for attempt in range(1, MAX_ATTEMPTS + 1):
            self._number += 1
            home = self._directory / f"{name}-{self._number}"
            home.mkdir()
            machine = Machine(self._network, self._number, self._environment(home))
            self._machines.append(machine)
            try:
                machine.run(*command, f"--node-ip-address={machine.address}")
            except AssertionError:
                machine.kill()
                if attempt == MAX_ATTEMPTS:
                    raise
            else:
                return machine
        raise AssertionError

    def _environment(self, home: Path) -> Mapping[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TRITEXT_"))}
        return {
            **inherited,
            **cluster_environment(),
            "RAY_AUTH_TOKEN_PATH": str(self._directory / "ray_token"),
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # all machines share a few cores
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self._directory / "haproxy"),
            "HOME": str(home),
            "TRITEXT_HOME": str(home / ".tritext"),
            **self._variables,
        }

    def stop(self) -> None:
        for machine in self._machines:
            machine.kill()


@contextmanager
def network() -> Iterator[Network]:
    """For as long as the context lasts; skips the test where there may be none."""
    has_programs = sys.platform == "linux" and all(map(shutil.which, ("ip", "nsenter", "unshare")))
    # Within namespaces of its own, so that nothing is left of it.
    trial = ("unshare", "--net", "--pid", "--mount", "--uts", "--fork", "ip", "link", "add", "type", "bridge")
    if not has_programs or subprocess.run(trial, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("several machines on one need Linux, its superuser and the programs ip, nsenter and unshare")
    for each in _OWN_DIRECTORIES:
        Path(each).mkdir(exist_ok=True)
    made = Network()
    try:
        yield made
    finally:
        made.remove()


@contextmanager
def cluster(variables: Mapping[str, str], options: Sequence[str] = ()) -> Iterator[Cluster]:
    """One that has a head only, for as long as the context lasts. options: of `ray start` there."""
    with ExitStack() as resources:
        joined = resources.enter_context(network())
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tritext-cluster-")))
        made = Cluster(joined, directory, variables)
        resources.callback(made.stop)
        made.start_head(*options)
        yield made


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)
