"""The files under test, read."""

from pathlib import Path
from typing import Any

import yaml

from infra.generate import INFRA, SERVE_CONFIG

PROJECT = INFRA.parent
KUBERAY = INFRA / "kuberay"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def manifests() -> list[dict[str, Any]]:
    """Every Kubernetes object."""
    return [document for path in sorted(KUBERAY.rglob("*.yaml")) for document in documents(path)]


def manifest(kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in manifests() if (each["kind"], each["metadata"].get("name")) == (kind, name)]
    return found


def deployments(path: Path = SERVE_CONFIG) -> dict[str, dict[str, Any]]:
    """Those of a Serve file, by name."""
    [document] = documents(path)
    [application] = document["applications"]
    return {each["name"]: each for each in application["deployments"]}


def trainer() -> dict[str, float]:
    """What a fine-tuning worker asks for on the cluster."""
    [document] = documents(SERVE_CONFIG)
    config: dict[str, float] = document["applications"][0]["args"]["graph"]["trainer"]
    return {"CPU": config["num_cpus"], "GPU": config["num_gpus"]}


def demand(options: dict[str, Any]) -> dict[str, float]:
    """What `ray_actor_options` ask of a node, by resource."""
    asked = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0), **options.get("resources", {})}
    return {name: amount for name, amount in asked.items() if amount}


def fits(demand: dict[str, float], room: dict[str, float]) -> bool:
    return all(room.get(name, 0) >= amount for name, amount in demand.items())
