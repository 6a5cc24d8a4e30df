"""The Serve files: what Ray Serve and the application take, and what they promise of sleep and updates."""

from pathlib import Path

import pytest
from ray._common.utils import import_attr
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from deployments.autoscaling import GeneratorLoadPolicy
from deployments.ray_graph import TOKENIZER, generator_name
from infra.generate import INFRA
from serve_app.app import build
from serve_app.dispatcher import DISPATCHER
from serve_app.ingress import INGRESS
from serve_app.launcher.serve_file import read_serve_file
from tests.unit.infra.files import deployments

FILES = sorted((INFRA / "serve").glob("*.yaml"))
LOCAL, GPU, CLUSTER = (INFRA / "serve" / name for name in ("local.yaml", "gpu.yaml", "cluster.yaml"))

# Of 2.60: what is to replace `metrics_interval_s` has no effect yet.
pytestmark = pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")

every_file = pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])


@every_file
def test_serve_and_the_application_take_it(path: Path) -> None:
    served = read_serve_file(path, http_port=8000)
    ServeDeploySchema.model_validate(served.document)
    [application] = served.document["applications"]
    build(application["args"])


@every_file
def test_no_key_is_misspelt(path: Path) -> None:
    """Ray ignores keys that it does not know; the application's own are checked as it takes them."""
    document = read_serve_file(path, http_port=8000).document
    [application] = document["applications"]
    assert document.keys() <= ServeDeploySchema.model_fields.keys()
    assert document["http_options"].keys() <= HTTPOptionsSchema.model_fields.keys()
    assert document.get("logging_config", {}).keys() <= LoggingConfig.model_fields.keys()
    assert application.keys() <= ServeApplicationSchema.model_fields.keys()
    for deployment in application["deployments"]:
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()
        assert deployment["ray_actor_options"].keys() <= RayActorOptionsSchema.model_fields.keys()
        assert deployment.get("autoscaling_config", {}).keys() <= AutoscalingConfig.model_fields.keys()


@every_file
def test_every_deployment_of_the_graph_is_named(path: Path) -> None:
    models = read_serve_file(path, http_port=8000).config.graph.models
    assert set(deployments(path)) == {INGRESS, TOKENIZER, DISPATCHER, *(generator_name(model.id) for model in models)}


def test_one_machine_listens_on_loopback_and_a_cluster_on_every_node() -> None:
    for path in FILES:
        served = ServeDeploySchema.model_validate(read_serve_file(path, http_port=8000).document)
        is_cluster = path == CLUSTER
        assert served.http_options.host == ("0.0.0.0" if is_cluster else "127.0.0.1"), path.name  # noqa: S104
        assert served.proxy_location.value == ("EveryNode" if is_cluster else "HeadOnly")


def test_one_gpu_holds_a_generator_and_a_training_worker() -> None:
    config = read_serve_file(GPU, http_port=8000).config
    held = [each.get("ray_actor_options", {}).get("num_gpus", 0) for each in deployments(GPU).values()]
    assert sum(held) + config.graph.trainer.num_gpus == 1


def test_a_cluster_needs_no_secret_in_its_file_and_keeps_its_objects_in_s3() -> None:
    config = read_serve_file(CLUSTER, http_port=8000).config
    assert config.database_url is None
    assert config.graph.checkpoints.url is not None
    assert config.graph.checkpoints.url.startswith("s3://")


def test_a_cluster_scales_its_generators_by_their_load_and_lets_one_sleep() -> None:
    generators = [each for name, each in deployments().items() if name.startswith("Generator-")]
    for each in generators:
        policy = each["autoscaling_config"]["policy"]
        assert import_attr(policy["policy_function"]) is GeneratorLoadPolicy
        GeneratorLoadPolicy(**policy["policy_kwargs"])
    assert sorted(each["autoscaling_config"]["min_replicas"] for each in generators) == [0, 1]


def test_a_cluster_sees_at_once_that_a_sleeping_model_is_wanted() -> None:
    """Serve reports what waits for a model every ten seconds, unless told otherwise."""
    asleep = [each["autoscaling_config"] for each in deployments().values() if "autoscaling_config" in each]
    asleep = [config for config in asleep if config["min_replicas"] == 0]
    assert asleep
    assert all(config["metrics_interval_s"] <= 1 for config in asleep)


def test_a_cluster_has_no_single_replica_at_the_front_and_starts_new_ones_before_old_ones_stop() -> None:
    found = deployments()
    assert found[DISPATCHER]["num_replicas"] == 2
    assert all(found[name]["autoscaling_config"]["min_replicas"] >= 2 for name in (INGRESS, TOKENIZER))
    assert all(each["max_surge_percent"] > 0 for each in found.values())


def test_one_machine_of_two_cores_holds_the_replicas_of_an_update() -> None:
    """New ones beside old ones, of everything that requests wait for."""
    found = deployments(LOCAL)
    assert {name for name, each in found.items() if each.get("max_surge_percent") == 100} == found.keys() - {DISPATCHER}
    most = {name: each.get("autoscaling_config", {}).get("min_replicas", 1) for name, each in found.items()}
    reserved = sum(
        each["ray_actor_options"]["num_cpus"] * most[name] * (1 + each.get("max_surge_percent", 0) / 100)
        for name, each in found.items()
    )
    assert reserved <= 2


def test_a_request_waits_for_a_machine_to_start_but_not_beyond_its_deadline() -> None:
    config = read_serve_file(CLUSTER, http_port=8000).config
    assert 300 <= config.graph.replica_wait_s < config.http.request_deadline_s
