from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.ray_graph import TOKENIZER, generator_name
from serve_app.config import SetupError
from serve_app.dispatcher import DISPATCHER
from serve_app.ingress import INGRESS
from serve_app.launcher.serve_file import read_serve_file

LOCAL = Path(__file__).parents[3] / "infra/serve/local.yaml"


def write(directory: Path, args: Any) -> Path:
    path = directory / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]}))
    return path


def test_the_local_file_is_one_that_serve_accepts() -> None:
    schema = ServeDeploySchema.model_validate(read_serve_file(LOCAL, http_port=8123).document)
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8123)


def test_the_local_file_scales_every_deployment_by_itself_and_needs_no_gpu() -> None:
    served = read_serve_file(LOCAL, http_port=8000)
    [application] = served.document["applications"]
    models = served.config.graph.models
    called = {INGRESS, TOKENIZER, *(generator_name(model.id) for model in models)}
    deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
    assert deployments.keys() == {DISPATCHER, *called}
    assert all(deployments[name]["autoscaling_config"]["min_replicas"] == 1 for name in called)
    assert deployments[DISPATCHER]["num_replicas"] == 1  # it finds its work by itself
    assert all("num_gpus" not in deployment["ray_actor_options"] for deployment in application["deployments"])
    assert models[0].id == "SmolLM2-135M-Instruct"
    assert models[0].aliases == ("standard",)


def test_the_local_file_fits_two_cores() -> None:
    [application] = read_serve_file(LOCAL, http_port=8000).document["applications"]
    most = sum(
        deployment.get("autoscaling_config", {}).get("max_replicas", 1) * deployment["ray_actor_options"]["num_cpus"]
        for deployment in application["deployments"]
    )
    assert most <= 2


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "graph: Field required"),
        ({"graph": {"models": []}}, "graph.models"),
        ({"graph": {"models": [{"id": "a", "source": "b", "alias": "c"}]}}, "graph.models.0.alias"),
        ({"graph": {"models": [{"id": "a", "source": "b"}, {"id": "a", "source": "c"}]}}, "answer to the name 'a'"),
    ],
)
def test_wrong_args_are_told_before_anything_starts(tmp_path: Path, args: Any, reason: str) -> None:
    with pytest.raises(SetupError, match=reason):
        read_serve_file(write(tmp_path, args), http_port=8000)


@pytest.mark.parametrize("text", ["", "[]", "applications: 3", "applications: [{import_path: other:app}]"])
def test_a_file_without_the_application_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(SetupError, match="one application with the import path"):
        read_serve_file(path, http_port=8000)


def test_a_missing_file_and_no_yaml_are_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        read_serve_file(tmp_path / "absent.yaml", http_port=8000)
    path = tmp_path / "serve.yaml"
    path.write_text("a: [")
    with pytest.raises(SetupError, match="is no YAML"):
        read_serve_file(path, http_port=8000)
