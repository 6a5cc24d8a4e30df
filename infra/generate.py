"""Writes what stands in two places from the one where it is kept; `python -m infra.generate` after a change of either.

| made | from |
| --- | --- |
| `serveConfigV2` in infra/kuberay/service.yaml | infra/serve/cluster.yaml |
| infra/kuberay/environment.yaml, infra/ray/ray.env | serve_app/launcher/profile.py and infra/serve/cluster.yaml |
| infra/observability/kubernetes.yaml | infra/observability/alerts.yaml |
| infra/observability/dashboard.json | infra/dashboard.py |
"""

from collections.abc import Mapping
from pathlib import Path

from infra.dashboard import dashboard_text
from infra.haproxy import PORTS
from serve_app.launcher.profile import Profile, environment
from serve_app.launcher.serve_file import read_serve_file

INFRA = Path(__file__).parent
SERVE_CONFIG = INFRA / "serve/cluster.yaml"
SERVICE = INFRA / "kuberay/service.yaml"
OBSERVABILITY = INFRA / "observability"
ALERTS = OBSERVABILITY / "alerts.yaml"

IMAGE_HAPROXY = "/opt/tritext/haproxy"

_BEGIN, _END = "  serveConfigV2: |\n", "  rayClusterConfig:\n"
_NOTE = "# Made by `python -m infra.generate` from serve_app/launcher/profile.py and infra/serve/cluster.yaml.\n"

_MONITORING = """\
# Made by `python -m infra.generate` from infra/observability/alerts.yaml, for Prometheus's operator: apply it beside
# infra/kuberay, and label the namespace of Prometheus (see infra/kuberay/network.yaml).
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: tritext, namespace: tritext}
spec:
  selector:
    matchLabels: {app.kubernetes.io/part-of: tritext}
  jobLabel: app.kubernetes.io/part-of
  podMetricsEndpoints:
    - port: metrics
      interval: 15s
      metricRelabelings:
        - {sourceLabels: [__name__], regex: ray_(tritext|serve|node)_.*, action: keep}
        - {regex: otel_scope_.*|SessionName|Version|Component, action: labeldrop}
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: tritext, namespace: tritext}
spec:
"""

# Of one machine that runs one service for itself: its directories, its loopback address, its few cores.
_LOCAL = {
    "TRITEXT_RUNTIME_DIR",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    "OMP_NUM_THREADS",
    "RAY_SERVE_HAPROXY_BINARY_PATH",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC",
    "RAY_SERVE_HAPROXY_SOCKET_PATH",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE",
    "RAY_SERVE_HAPROXY_NBTHREAD",
}

_CLUSTER = {
    # Without it Serve's controller hangs for as long as the head's store is away.
    "RAY_SERVE_KV_TIMEOUT_S": "10",
}


def cluster_environment() -> Mapping[str, str]:
    """The variables of every node of a cluster: those of the throughput profile, but for what is local."""
    nowhere = Path("/nowhere")
    variables = environment(
        Profile.THROUGHPUT,
        runtime_dir=nowhere,
        token_file=nowhere,
        ports=PORTS,
        num_threads=1,
        haproxy=nowhere,
        longest_answer_s=read_serve_file(SERVE_CONFIG, http_port=PORTS.http).config.longest_answer_s,
    )
    return {name: value for name, value in variables.items() if name not in _LOCAL} | _CLUSTER


def service_text(text: str, serve_config: str) -> str:
    """The RayService with this Serve configuration in the place of the one that it holds."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    if not after:
        raise ValueError(f"{SERVICE} has no serveConfigV2 before its rayClusterConfig")
    indented = "".join(f"    {line}" if line.strip() else line for line in serve_config.splitlines(keepends=True))
    return before + _BEGIN + indented + _END + after


def monitoring_text(alerts: str) -> str:
    """What Prometheus's operator in Kubernetes needs: where measurements are, and these alarms."""
    _, _, groups = alerts.partition("groups:\n")
    if not groups:
        raise ValueError(f"{ALERTS} has no groups")
    indented = "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))
    return _MONITORING + "  groups:\n" + indented


def generated() -> Mapping[Path, str]:
    """Every file that is made, and what belongs in it."""
    variables = cluster_environment()
    config_map = "".join(f'  {name}: "{value}"\n' for name, value in variables.items())
    return {
        SERVICE: service_text(SERVICE.read_text("utf-8"), SERVE_CONFIG.read_text("utf-8")),
        INFRA / "kuberay/environment.yaml": (
            f"{_NOTE}apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tritext-environment, namespace: tritext}}\n"
            f'data:\n{config_map}  RAY_SERVE_HAPROXY_BINARY_PATH: "{IMAGE_HAPROXY}"\n'
        ),
        INFRA / "ray/ray.env": _NOTE + "".join(f"{name}={value}\n" for name, value in variables.items()),
        OBSERVABILITY / "kubernetes.yaml": monitoring_text(ALERTS.read_text("utf-8")),
        OBSERVABILITY / "dashboard.json": dashboard_text(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
