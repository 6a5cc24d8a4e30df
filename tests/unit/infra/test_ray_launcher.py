"""The cluster on AWS: what Ray's launcher takes, what its nodes may do, and that none starts without a token."""

import copy
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray
from moto import mock_aws
from ray.autoscaler._private.autoscaler import StandardAutoscaler
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.scripts.scripts import start as ray_start

from infra.generate import INFRA, cluster_environment
from infra.ray import node_secrets
from serve_app.config import Home, Secrets
from serve_app.stores.database import Database
from tests.unit.infra.files import documents, manifest

LAUNCHER = INFRA / "ray/aws.yaml"
START = INFRA / "ray/start.sh"
[CONFIG] = documents(LAUNCHER)
NODES: dict[str, dict[str, Any]] = CONFIG["available_node_types"]
WORKERS = {name: node for name, node in NODES.items() if name != CONFIG["head_node_type"]}
TEMPLATE = (INFRA / "aws/tritext.yaml").read_text("utf-8")


def test_the_launcher_takes_it() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text("utf-8"))
    jsonschema.validate(CONFIG, schema)


def test_it_has_the_same_kinds_of_machines_as_kubernetes() -> None:
    groups = manifest("RayService", "tritext")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pools = {each["groupName"]: (each["minReplicas"], each["maxReplicas"], each["resources"]) for each in groups}
    assert pools == {
        name: (node["min_workers"], node["max_workers"], {key: str(value) for key, value in node["resources"].items()})
        for name, node in WORKERS.items()
    }
    assert CONFIG["max_workers"] == sum(node["max_workers"] for node in WORKERS.values())
    assert NODES["head"]["resources"] == {"CPU": 0}


def test_every_machine_has_the_rights_of_its_kind_that_the_stack_made() -> None:
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in NODES.items()}
    assert profiles == {
        "head": "tritext-head",
        "serving": "tritext-serving",
        "dispatching": "tritext-dispatching",
        "generating": "tritext-serving",
        "training": "tritext-training",
    }
    for name in profiles.values():
        assert f'InstanceProfileName: !Sub "{name.replace("tritext", "${Name}")}"' in TEMPLATE


def test_machines_are_in_the_stack_s_closed_group_and_give_credentials_to_nobody_else() -> None:
    group = CONFIG["provider"]["security_group"]
    assert group == {"GroupName": "tritext-nodes"}  # with rules of its own Ray would open it to SSH from everywhere
    assert 'GroupName: !Sub "${Name}-nodes"' in TEMPLATE
    for node in NODES.values():
        assert "SecurityGroupIds" not in node["node_config"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])


def test_only_machines_whose_loss_nobody_notices_are_spot() -> None:
    assert {name for name, node in NODES.items() if "InstanceMarketOptions" in node["node_config"]} == {
        "generating",
        "training",
    }


def test_the_objects_of_the_launcher_are_in_the_bucket_of_the_serve_file() -> None:
    [serve] = documents(INFRA / "serve/cluster.yaml")
    checkpoints = serve["applications"][0]["args"]["graph"]["checkpoints"]
    assert checkpoints["region"] == CONFIG["provider"]["region"]
    assert f"{checkpoints['url']}/models /models" in CONFIG["worker_setup_commands"][-1]
    assert CONFIG["setup_commands"][-1].endswith(f"node_secrets {CONFIG['cluster_name']} {checkpoints['region']}")


class Autoscaler(StandardAutoscaler):
    """As far as it says what is run on a machine; a machine is called as its kind."""

    def __init__(self) -> None:
        self.config = prepare_config(copy.deepcopy(CONFIG))
        self.available_node_types = self.config["available_node_types"]
        self.provider = self

    def node_tags(self, node_id: str) -> dict[str, str]:
        return {TAG_RAY_USER_NODE_TYPE: node_id}

    def setup_of(self, kind: str) -> list[str]:
        commands: list[str] = self._get_node_type_specific_fields(kind, "worker_setup_commands")
        return commands


@pytest.mark.parametrize(
    "setup_of",
    [
        Autoscaler().setup_of,
        AutoscalingConfig(copy.deepcopy(CONFIG), skip_content_hash=True).get_worker_setup_commands,
    ],
    ids=["autoscaler", "autoscaler v2"],
)
def test_every_machine_is_set_up_and_those_that_load_models_have_them(setup_of: Callable[[str], list[str]]) -> None:
    setup, models = CONFIG["setup_commands"], CONFIG["worker_setup_commands"]
    assert {name: setup_of(name) for name in WORKERS} == {
        "serving": setup + models,
        "dispatching": setup,
        "generating": setup + models,
        "training": setup + models,
    }
    assert prepare_config(copy.deepcopy(CONFIG))["head_setup_commands"] == setup


def test_every_ray_of_the_launcher_is_started_by_the_script_that_demands_a_token() -> None:
    commands = CONFIG["head_start_ray_commands"] + CONFIG["worker_start_ray_commands"]
    assert all("/infra/ray/start.sh " in command and "ray start" not in command for command in commands)
    assert START.stat().st_mode & stat.S_IXUSR


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A home with the scripts of a node, and in the place of its environment one that writes down what it is told."""
    shutil.copytree(INFRA / "ray", tmp_path / "tritext/infra/ray")
    programs = tmp_path / "tritext/.venv/bin"
    programs.mkdir(parents=True)
    for name in ("ray", "python"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "$HOME/calls"\nprintenv > "$HOME/{name}.env"\n')
        (programs / name).chmod(0o700)
    (tmp_path / ".tritext").mkdir()
    (tmp_path / ".tritext/node.env").write_text(f"RAY_AUTH_TOKEN_PATH={tmp_path}/.tritext/ray_token\n")
    return tmp_path


def start(machine: Path, kind: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", machine / "tritext/infra/ray/start.sh", kind],
        env={"HOME": str(machine), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "192.0.2.1"},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("token", [None, ""])
def test_a_node_without_a_token_does_not_start(machine: Path, token: str | None) -> None:
    if token is not None:
        (machine / ".tritext/ray_token").write_text(token)
    run = start(machine, "worker")
    assert (run.returncode, run.stderr) == (1, "no token: Ray would be open to everybody\n")
    assert not (machine / "calls").exists()


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_node_starts_ray_with_the_token_and_options_that_ray_knows(machine: Path, kind: str) -> None:
    (machine / ".tritext/ray_token").write_text("t")
    run = start(machine, kind)
    assert (run.returncode, run.stderr) == (0, "")
    *_, call = (machine / "calls").read_text().splitlines()
    options = dict(word.removeprefix("--").split("=") if "=" in word else (word[2:], "") for word in call.split()[2:])
    assert call.startswith("ray start --")
    assert options.keys() <= {name.removeprefix("--") for option in ray_start.params for name in option.opts}
    if kind == "head":
        assert options["num-cpus"] == "0"
        assert options["dashboard-host"] == "127.0.0.1"
        assert options["autoscaling-config"] == f"{machine}/ray_bootstrap_config.yaml"
    else:
        assert options["address"] == "192.0.2.1:6379"
    assert (
        "RAY_SERVE_HAPROXY_BINARY_PATH" not in (machine / "python.env").read_text()
    )  # it names what is yet to be made
    environment = dict(line.split("=", 1) for line in (machine / "ray.env").read_text().splitlines())
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == f"{machine}/.tritext/ray_token"
    assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"] == f"{machine}/.tritext/haproxy"
    assert cluster_environment().items() <= environment.items()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a node that has fetched its secrets."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    secrets = {
        "key-pepper": "p" * 64,
        "ray-token": "t" * 64,
        "database": json.dumps(
            {"engine": "postgres", "username": "tritext", "password": "a/b $x'", "host": "db.example", "port": 5433}
        ),
    }
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="eu-central-1")
        for name, value in secrets.items():
            client.create_secret(Name=f"tritext/{name}", SecretString=value)
        node_secrets.main("tritext", "eu-central-1", tmp_path / "home")
        node_secrets.main("tritext", "eu-central-1", tmp_path / "home")  # as at a second start
    yield tmp_path / "home"


def test_a_node_s_secrets_are_its_owner_s_alone(node: Path) -> None:
    assert sorted(path.name for path in node.iterdir()) == ["node.env", "ray_token"]
    assert stat.S_IMODE(node.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in node.iterdir()} == {0o600}


def test_a_node_s_processes_find_the_secrets(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "RAY_AUTH_TOKEN_PATH", "TRITEXT_KEY_PEPPER", "TRITEXT_DATABASE_URL"
    script = f'set -a; source "$0"; printenv {" ".join(names)}'
    run = subprocess.run(["bash", "-c", script, node / "node.env"], capture_output=True, text=True, check=True)
    token_path, pepper, url = run.stdout.splitlines()
    assert Path(token_path).read_text() == "t" * 64
    monkeypatch.setenv("TRITEXT_KEY_PEPPER", pepper)
    monkeypatch.setenv("TRITEXT_DATABASE_URL", url)
    assert Secrets.load().pepper() == b"p" * 64
    found = Home().secret_database_url
    assert found is not None
    assert found.get_secret_value() == ("postgresql://tritext:a%2Fb%20%24x%27@db.example:5433/tritext?sslmode=require")
    Database(found.get_secret_value())  # refuses a URL that it cannot use


def test_the_secrets_have_the_names_that_the_stack_gives_them() -> None:
    for suffix in ("key-pepper", "ray-token", "database"):
        assert f'Name: !Sub "${{Name}}/{suffix}"' in TEMPLATE
