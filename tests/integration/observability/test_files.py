"""Prometheus's own tool on the files for it."""

import shutil
from pathlib import Path

import pytest
import yaml

from infra.generate import ALERTS, OBSERVABILITY
from tests.prometheus import promtool

CASES = Path(__file__).with_name("alerts_test.yaml")


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus_cluster.yaml"])
def test_the_configuration_and_the_alarms_are_valid(name: str) -> None:
    checked = promtool("check", "config", OBSERVABILITY / name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout


def test_alarms_are_raised_when_they_should_be_and_not_otherwise(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    cases = shutil.copy(CASES, tmp_path)
    checked = promtool("test", "rules", cases)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alarm_is_raised_by_a_case() -> None:
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    text = CASES.read_text("utf-8")
    assert not [rule["alert"] for rule in group["rules"] if f'alertname="{rule["alert"]}"' not in text]
