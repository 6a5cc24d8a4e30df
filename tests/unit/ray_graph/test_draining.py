"""A replica of the ingress that is told to stop has the time that its longest answer may take."""

from typing import Any

import pytest

from serve_app.app import build
from serve_app.config import BODY_ARRIVAL_S, BODY_TURN_S, GRACE_S, READING_TURN_S, AppConfig

GRAPH = {"models": [{"id": "tiny", "source": "/models/tiny"}]}
BEFORE_TRAINING_S = BODY_TURN_S + BODY_ARRIVAL_S + READING_TURN_S


@pytest.mark.parametrize(
    ("args", "longest_s"),
    [
        ({}, BEFORE_TRAINING_S + 600 + GRACE_S),
        ({"fine_tuning": {"hold_s": 1800}}, BEFORE_TRAINING_S + 1800 + GRACE_S),
        ({"fine_tuning": {"hold_s": 1}}, 600 + GRACE_S),
        ({"http": {"request_deadline_s": 3600}}, 3600 + GRACE_S),
        ({"http": {"request_deadline_s": 20}, "fine_tuning": {"hold_s": 1}}, BEFORE_TRAINING_S + 1 + GRACE_S),
    ],
)
def test_the_ingress_stops_when_its_longest_answer_is_over(args: dict[str, Any], longest_s: float) -> None:
    application = {"graph": GRAPH, **args}
    ingress = build(application)._bound_deployment
    assert ingress.name == "Ingress"
    assert ingress._deployment_config.graceful_shutdown_timeout_s == longest_s
    assert AppConfig.model_validate(application).longest_answer_s == longest_s
