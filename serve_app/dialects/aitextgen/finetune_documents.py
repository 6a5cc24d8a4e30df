"""How the reference pages show the fine-tuning routes."""

from typing import Any

from serve_app.dialects.aitextgen.finetune_wire import FineTuneAccepted, FineTuneAnswer, FineTuneBody
from serve_app.http.documented import documented, page_of
from serve_app.http.openapi import answer, header_parameter, request_body
from serve_app.http.query import QueryModel
from serve_app.http.resources import PageQuery

_MODEL_ID = "ft_model_4fk2x90qh7mzt1ab"
_JOB_ID = "ftjob-2n4k8zq0w1m5c7x9b3v6t0ay"
_REQUESTS: dict[str, dict[str, Any]] = {
    "documented": {
        "training_data": ["Once upon a time there was a fox.", "The fox lived by the sea."],
        "epochs": 3,
        "learning_rate": 5e-5,
    },
    "settings": {
        "training_data": ["Question: Who lives by the sea? Answer: The fox."],
        "epochs": 10,
        "learning_rate": 1e-3,
        "name": "fox-answers",
        "rank": 8,
        "seed": 7,
    },
}
_SUCCESS = {"status": "success", "model_id": _MODEL_ID, "training_time": 180.5}
_ACCEPTED = {"status": "running", "job_id": _JOB_ID, "model_id": _MODEL_ID}
_JOB: dict[str, Any] = {
    **_SUCCESS,
    "job_id": _JOB_ID,
    "base_model": "SmolLM2-135M-Instruct",
    "name": "fox-answers",
    "epochs": 3,
    "learning_rate": 5e-05,
    "seed": 0,
    "step": 120,
    "total_steps": 120,
    "loss": 1.25,
    "tokens_per_second": 4100.0,
    "seconds_left": None,
    "trained_tokens": 491520,
    "created_at": "2026-01-31T12:00:00Z",
    "started_at": "2026-01-31T12:00:04Z",
    "finished_at": "2026-01-31T12:03:05Z",
    "error": None,
}
_EVENT = {
    "id": 17,
    "created_at": "2026-01-31T12:01:00Z",
    "level": "info",
    "type": "metrics",
    "message": "Step 40/120: training loss=1.7312",
    "data": {"step": 40, "total_steps": 120, "train_loss": 1.7312, "tokens_per_second": 4100.0, "seconds_left": 120.0},
}

FINE_TUNE: dict[str, Any] = {
    "summary": "Fine-tune a model",
    "openapi_extra": {
        **request_body(FineTuneBody, _REQUESTS),
        "parameters": [header_parameter("Idempotency-Key"), header_parameter("Prefer")],
    },
    "responses": {
        200: answer("The model is trained and can be used.", FineTuneAnswer, {"documented": _SUCCESS}),
        202: answer("The training goes on; `Location` tells how it stands.", FineTuneAccepted, {"running": _ACCEPTED}),
    },
}
LIST = documented("List fine-tuning jobs", answer=page_of(_JOB), query=PageQuery)
GET = documented("Retrieve a fine-tuning job", answer=_JOB)
CANCEL = documented("Cancel a fine-tuning job", answer={**_JOB, "status": "cancelled"}, repeatable=True)


def events(query: type[QueryModel]) -> dict[str, Any]:
    return documented("List the events of a fine-tuning job", answer=page_of(_EVENT), query=query)
