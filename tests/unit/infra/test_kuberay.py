"""The Kubernetes objects: what KubeRay takes, as whom pods run, who reaches them, and what they hold."""

from collections import Counter
from collections.abc import Iterator
from math import ceil
from typing import Any

import pytest

from serve_app.config import AppConfig
from tests.unit.infra.files import KUBERAY, demand, deployments, documents, fits, manifest, manifests, trainer

SERVICE = manifest("RayService", "tritext")
SPEC = SERVICE["spec"]
CLUSTER = SPEC["rayClusterConfig"]
POOLS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
GROUPS = [CLUSTER["headGroupSpec"], *POOLS.values()]

# The fields of KubeRay's RayService (ray.io/v1) as far as they are of use here.
FIELDS: dict[str, set[str]] = {
    "spec": {
        "deploymentUnhealthySecondThreshold",
        "excludeHeadPodFromServeSvc",
        "rayClusterConfig",
        "rayClusterDeletionDelaySeconds",
        "serveConfigV2",
        "serveService",
        "serviceUnhealthySecondThreshold",
        "suspend",
        "upgradeStrategy",
    },
    "cluster": {
        "authOptions",
        "autoscalerOptions",
        "enableInTreeAutoscaling",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "headServiceAnnotations",
        "rayVersion",
        "workerGroupSpecs",
    },
    "auth": {"enableK8sTokenAuth", "mode", "secretName"},
    "autoscaler": {
        "env",
        "envFrom",
        "idleTimeoutSeconds",
        "image",
        "imagePullPolicy",
        "resources",
        "securityContext",
        "upscalingMode",
        "version",
        "volumeMounts",
    },
    "fault tolerance": {"externalStorageNamespace", "redisAddress", "redisPassword", "redisUsername"},
    "head": {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"},
    "pool": {
        "groupName",
        "idleTimeoutSeconds",
        "labels",
        "maxReplicas",
        "minReplicas",
        "rayStartParams",
        "replicas",
        "resources",
        "scaleStrategy",
        "template",
    },
}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's specification, by a name for it."""
    for each in manifests():
        if each["kind"] == "RayService":
            for group in GROUPS:
                yield group.get("groupName", "head"), group["template"]["spec"]
        elif "template" in each.get("spec", {}):
            yield each["kind"], each["spec"]["template"]["spec"]


PODS = dict(pods())
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def test_kuberay_knows_every_field() -> None:
    assert SPEC.keys() <= FIELDS["spec"]
    assert CLUSTER.keys() <= FIELDS["cluster"]
    assert CLUSTER["authOptions"].keys() <= FIELDS["auth"]
    assert CLUSTER["autoscalerOptions"].keys() <= FIELDS["autoscaler"]
    assert CLUSTER["gcsFaultToleranceOptions"].keys() <= FIELDS["fault tolerance"]
    assert CLUSTER["headGroupSpec"].keys() <= FIELDS["head"]
    for pool in POOLS.values():
        assert pool.keys() <= FIELDS["pool"]
        assert {"groupName", "template", "minReplicas", "maxReplicas"} <= pool.keys()


def test_kuberay_s_own_rules_hold() -> None:
    for group in GROUPS:  # what Ray is told of a pod's size stands in one place; the autoscaler replaces pods whole
        assert not {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys()
        assert all(isinstance(value, str) for value in group["resources"].values())
        assert "restartPolicy" not in group["template"]["spec"]
    environment = {name for each in PODS.values() for one in each["containers"] for name in env_names(one)}
    assert not environment & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_gcs_storage"}


def test_the_ray_version_is_the_one_that_is_locked() -> None:
    import ray

    assert CLUSTER["rayVersion"] == ray.__version__


def test_every_connection_to_ray_shows_a_token() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "tritext-ray"}


def test_the_head_can_be_lost() -> None:
    assert CLUSTER["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert CLUSTER["headGroupSpec"]["resources"] == {"CPU": "0"}
    [port] = manifest("Service", "redis")["spec"]["ports"]
    assert port["port"] == 6379
    [redis] = manifest("StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    assert "appendonly yes" in redis["command"][-1]


def test_there_is_no_secret_in_the_files() -> None:
    assert not [each for each in manifests() if each["kind"] == "Secret"]
    for pod in PODS.values():
        for container in pod["containers"]:
            assert all("value" not in each for each in container.get("env", ()))
    assert "value" not in CLUSTER["gcsFaultToleranceOptions"]["redisPassword"]
    named = {*secrets_of(list(PODS.values())), *secrets_of(CLUSTER), CLUSTER["authOptions"]["secretName"]}
    assert named == {"tritext", "tritext-ray", "tritext-redis"}
    told = (KUBERAY / "access.yaml").read_text("utf-8")
    assert all(f"#   {name} " in told for name in named)


@every_pod
def test_pods_are_not_root_and_can_become_nothing_else(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@every_pod
def test_pods_are_bounded(pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert {"cpu", "memory"} <= limits.keys()
        assert limits["memory"] == requests["memory"]


@every_pod
def test_pods_mount_volumes_that_they_have(pod: dict[str, Any]) -> None:
    names = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}  # data: of redis, by its claim
    for container in pod["containers"]:
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= names


def test_the_namespace_refuses_pods_that_could_do_more() -> None:
    labels = manifest("Namespace", "tritext")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"].get("namespace", "tritext") for each in manifests()} == {"tritext"}


def test_accounts_exist_and_have_no_rights_in_kubernetes() -> None:
    accounts = {each["metadata"]["name"]: each for each in manifests() if each["kind"] == "ServiceAccount"}
    used = {name: pool["template"]["spec"]["serviceAccountName"] for name, pool in POOLS.items()}
    assert used == {
        "serving": "tritext-serving",
        "dispatching": "tritext-dispatching",
        "generating": "tritext-serving",
        "training": "tritext-training",
    }
    assert set(used.values()) == set(accounts)
    assert not any(each["automountServiceAccountToken"] for each in accounts.values())
    assert not [each for each in manifests() if "Role" in each["kind"]]


def test_only_named_peers_reach_ray() -> None:
    policy = manifest("NetworkPolicy", "tritext")["spec"]
    for group in GROUPS:
        assert policy["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    among_themselves, *others = policy["ingress"]
    assert among_themselves == {"from": [{"podSelector": policy["podSelector"]}]}
    for rule in others:
        assert rule["from"]
        assert all(peer["namespaceSelector"]["matchLabels"] for peer in rule["from"])
    open_ports = {
        next(iter(peer["namespaceSelector"]["matchLabels"])): ports(rule) for rule in others for peer in rule["from"]
    }
    assert open_ports == {
        "kubernetes.io/metadata.name": {8265, 8000},
        "tritext/clients": {8000},
        "tritext/metrics": {8080},
    }


def test_only_the_pods_of_the_service_reach_redis() -> None:
    policy = manifest("NetworkPolicy", "redis")["spec"]
    labels = manifest("StatefulSet", "redis")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    [rule] = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "tritext"}}}]
    assert ports(rule) == {6379}


def test_every_deployment_has_machines_of_one_kind() -> None:
    rooms = {name: {key: float(value) for key, value in pool["resources"].items()} for name, pool in POOLS.items()}
    where = {
        name: [pool for pool, room in rooms.items() if fits(demand(each["ray_actor_options"]), room)]
        for name, each in deployments().items()
    }
    assert where == {
        "Ingress": ["serving"],
        "Tokenizer": ["serving"],
        "Dispatcher": ["dispatching"],
        "Generator-Qwen2.5-14B-Instruct": ["generating"],
        "Generator-Qwen2.5-7B-Instruct": ["generating"],
    }
    assert [pool for pool, room in rooms.items() if fits(trainer(), room)] == ["training"]


def test_there_are_machines_for_all_that_may_run_at_once_and_one_more_for_updates() -> None:
    """On which a new replica starts before an old one stops; deployments that are updated together take turns there."""
    running: dict[str, list[dict[str, Any]]] = {name: [] for name in POOLS}
    for each in deployments().values():
        [pool] = running.keys() & each["ray_actor_options"]["resources"].keys()
        running[pool].append(each)
    for name in ("serving", "dispatching", "generating"):
        assert POOLS[name]["maxReplicas"] > num_machines(running[name], POOLS[name]), name
    [document] = documents(KUBERAY.parent / "serve/cluster.yaml")
    config = AppConfig.model_validate(document["applications"][0]["args"])
    assert POOLS["training"]["maxReplicas"] >= config.fine_tuning.max_jobs


def test_pods_give_ray_what_they_tell_it_that_they_have() -> None:
    for name, pool in POOLS.items():
        [container] = pool["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["cpu"] == pool["resources"]["CPU"], name
        assert container["resources"]["limits"].get("nvidia.com/gpu") == pool["resources"].get("GPU"), name


def test_a_pod_stays_until_its_longest_answer_is_over() -> None:
    longest_s = longest_answer_s()
    for pool in POOLS.values():
        spec = pool["template"]["spec"]
        [container] = spec["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        wait_s = int(command.rsplit("sleep ", 1)[1])
        assert f"--deadline-remaining-seconds={wait_s}" in command
        # Serve stops a replica so early that it has its whole time, though the one in its place does not run yet.
        assert longest_s + 60 <= wait_s < spec["terminationGracePeriodSeconds"]
    assert SPEC["rayClusterDeletionDelaySeconds"] > longest_s


def test_proxies_pass_the_longest_answer_on_to_its_end() -> None:
    variables = manifest("ConfigMap", "tritext-environment")["data"]
    assert int(variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > longest_answer_s()


def test_an_eviction_leaves_some_of_every_pool_that_answers() -> None:
    budgets = [each["spec"] for each in manifests() if each["kind"] == "PodDisruptionBudget"]
    guarded = [budget["selector"]["matchLabels"]["tritext/pool"] for budget in budgets]
    assert sorted(guarded) == ["dispatching", "generating", "serving"]
    for budget in budgets:
        # Kubernetes takes nothing else for pods whose controller has no scale.
        assert isinstance(budget["minAvailable"], int)
        assert "maxUnavailable" not in budget
    for name, pool in POOLS.items():
        assert pool["template"]["metadata"]["labels"]["tritext/pool"] == name


def num_machines(running: list[dict[str, Any]], pool: dict[str, Any]) -> int:
    """How many of the pool's machines hold the most that there may be of these deployments' replicas."""
    asked: Counter[str] = Counter()
    least = 0
    for each in running:
        most = each.get("num_replicas") or each["autoscaling_config"]["max_replicas"]
        least = max(least, ceil(most / each.get("max_replicas_per_node", most)))
        for name, amount in demand(each["ray_actor_options"]).items():
            asked[name] += most * amount
    return max(least, *(ceil(amount / float(pool["resources"][name])) for name, amount in asked.items()))


def longest_answer_s() -> float:
    """Of the configuration that runs there."""
    [document] = documents(KUBERAY.parent / "serve/cluster.yaml")
    return AppConfig.model_validate(document["applications"][0]["args"]).longest_answer_s


def env_names(container: dict[str, Any]) -> set[str]:
    return {each["name"] for each in container.get("env", ())}


def ports(rule: dict[str, Any]) -> set[int]:
    return {each["port"] for each in rule["ports"]}


def secrets_of(value: Any) -> set[str]:
    """Names of the Secrets that are referred to."""
    if isinstance(value, dict):
        found = {value[key]["name"] for key in ("secretRef", "secretKeyRef") if key in value}
        return found.union(*map(secrets_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(secrets_of, value))
    return set()
