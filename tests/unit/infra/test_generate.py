from pathlib import Path

import pytest

from infra.generate import SERVICE, cluster_environment, generated, service_text
from tests.unit.infra.files import KUBERAY, PROJECT, documents

MADE = generated()


@pytest.mark.parametrize("path", MADE, ids=[str(path.relative_to(PROJECT)) for path in MADE])
def test_what_is_committed_is_what_is_made(path: Path) -> None:
    assert path.read_text("utf-8") == MADE[path], "run python -m infra.generate"


def test_another_configuration_takes_the_place_of_the_one_before_and_nothing_else_changes() -> None:
    before = documents(SERVICE)[0]
    text = service_text(SERVICE.read_text("utf-8"), "a:\n\n  b: 1\n")
    assert "serveConfigV2: |\n    a:\n\n      b: 1\n  rayClusterConfig:\n" in text
    assert service_text(text, before["spec"]["serveConfigV2"]) == SERVICE.read_text("utf-8")


def test_a_service_without_a_place_for_the_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="serveConfigV2"):
        service_text("spec:\n  rayClusterConfig:\n", "a: 1\n")


def test_nodes_of_a_cluster_ask_for_the_token_and_reach_each_other() -> None:
    variables = cluster_environment()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in variables  # it would keep Ray on the loopback address
    assert not [value for value in variables.values() if "nowhere" in value]


def test_environments_hold_what_a_shell_and_yaml_read_alike() -> None:
    [config_map] = documents(KUBERAY / "environment.yaml")
    assert all(isinstance(value, str) for value in config_map["data"].values())
    lines = (PROJECT / "infra/ray/ray.env").read_text("utf-8").splitlines()[1:]
    assert dict(line.split("=", 1) for line in lines) == {
        name: value for name, value in config_map["data"].items() if name != "RAY_SERVE_HAPROXY_BINARY_PATH"
    }
