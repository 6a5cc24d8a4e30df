"""Ray and Ray Serve on this machine: started for one service, watched, stopped.

Ray and Serve read their environment when they are imported, so this module must be imported after it is set.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.dashboard import dashboard
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatusOverview, ServeDeploySchema

from serve_app.config import SetupError
from serve_app.launcher.ports import HOST

_VITAL_PROCESSES = frozenset({"raylet", "gcs_server"})
_OBJECT_STORE_BYTES = 80 * 1024 * 1024  # close to the least that Ray takes: requests and answers are small


def start_ray(temp_dir: Path, *, num_cpus: int, measurements_port: int) -> None:
    """Starts Ray on the loopback address, with this process as its owner. Raises SetupError."""
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,  # a gigabyte in ten processes; see `start_status_server`
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(temp_dir),
            _metrics_export_port=measurements_port,
        )
    except Exception as error:
        raise SetupError(f"Ray did not start: {_first_line(error)} (logs: {temp_dir}/session_latest/logs)") from error


def start_status_server(port: int) -> None:
    """Starts the one part of Ray's dashboard that the command `serve status` asks, on the loopback address.

    It answers nobody who does not have the cluster's token.
    """
    node = ray._private.worker._global_node
    subprocess.Popen(  # noqa: S603
        [
            sys.executable,
            dashboard.__file__,
            f"--host={HOST}",
            f"--port={port}",
            "--modules-to-load=ServeHead",
            f"--gcs-address={node.gcs_address}",
            f"--cluster-id-hex={node.cluster_id.hex()}",
            f"--node-ip-address={node.node_ip_address}",
            f"--temp-dir={node.temp_dir}",
            f"--log-dir={node.get_logs_dir_path()}",
            f"--session-dir={node.get_session_dir_path()}",
            "--logging-filename=status_server.log",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def deploy(document: Mapping[str, Any]) -> None:
    """Starts Serve and gives it the configuration; returns before the deployments run. Raises SetupError."""
    try:
        schema = ServeDeploySchema.model_validate(document)
        serve.start(
            proxy_location=schema.proxy_location,
            http_options=schema.http_options.model_dump(),
            logging_config=schema.logging_config,
            tracing_config=schema.tracing_config,
        )
        _get_global_client().deploy_apps(schema)
    except Exception as error:
        raise SetupError(f"Ray Serve did not start: {_reason(str(error))}") from error


def status(app_name: str) -> ApplicationStatusOverview | None:
    """What Serve says of the application, None while it has not heard of it. Raises SetupError where Serve is gone."""
    try:
        return serve.status().applications.get(app_name)
    except Exception as error:
        raise SetupError(f"Ray Serve does not answer: {_first_line(error)}") from error


def failure(application: ApplicationStatusOverview) -> str | None:
    """Why the application will not come up, or None while it still may."""
    for name, deployment in application.deployments.items():
        if deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            return f"the deployment {name} did not start: {_reason(deployment.message)}"
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        return f"the application did not start: {_reason(application.message)}"
    return None


def deployments_up(application: ApplicationStatusOverview) -> set[str]:
    """The deployments that have what they need."""
    return {name for name, deployment in application.deployments.items() if deployment.status == "HEALTHY"}


def vital_processes() -> list[psutil.Process]:
    """The processes of Ray without which the service is gone."""
    return [child for child in psutil.Process().children() if child.name() in _VITAL_PROCESSES]


def stop_ray() -> None:
    """Disconnects from Ray and stops its processes; what is left is for `processes.end_all`."""
    ray.shutdown()


def _first_line(error: BaseException) -> str:
    return next(_lines(str(error)), type(error).__name__)


def _reason(message: str) -> str:
    """The exception at the end of a traceback, which is what Serve's messages carry."""
    lines = list(_lines(message))
    return next((line for line in reversed(lines) if "Error: " in line or "Exception: " in line), " ".join(lines[-3:]))


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())
