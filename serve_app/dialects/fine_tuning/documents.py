"""How the reference pages show the routes of this dialect."""

from typing import Any

from serve_app.dialects.fine_tuning.wire import JobBody
from serve_app.http.documented import documented
from serve_app.http.openapi import header_parameter, request_body
from serve_app.http.query import QueryModel

_JOB_ID = "ftjob-2n4k8zq0w1m5c7x9b3v6t0ay"
_FILE_ID = "file-7h3k9q2x5m8b1c4v6n0z2tay"
_MODEL_ID = "ft_model_4fk2x90qh7mzt1ab"

_FILE: dict[str, Any] = {
    "id": _FILE_ID,
    "object": "file",
    "bytes": 120000,
    "created_at": 1790000000,
    "filename": "answers.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "expires_at": None,
    "status_details": None,
}
_HYPERPARAMETERS = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 1.0}
_JOB: dict[str, Any] = {
    "id": _JOB_ID,
    "object": "fine_tuning.job",
    "created_at": 1790000000,
    "finished_at": None,
    "estimated_finish": 1790000240,
    "model": "SmolLM2-135M-Instruct",
    "fine_tuned_model": None,
    "organization_id": "acme",
    "status": "running",
    "hyperparameters": _HYPERPARAMETERS,
    "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
    "training_file": _FILE_ID,
    "validation_file": None,
    "result_files": [],
    "trained_tokens": None,
    "seed": 42,
    "error": None,
    "user_provided_suffix": "support-answers",
    "metadata": {"ticket": "4711"},
    "integrations": [],
}
_EVENT: dict[str, Any] = {
    "id": "ftevent-17",
    "object": "fine_tuning.job.event",
    "created_at": 1790000060,
    "level": "info",
    "message": "Step 40/120: training loss=1.7312",
    "type": "metrics",
    "data": {"step": 40, "total_steps": 120, "train_loss": 1.7312},
}
_CHECKPOINT: dict[str, Any] = {
    "id": f"ftckpt-{'0f' * 32}",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1790000090,
    "fine_tuned_model_checkpoint": f"{_MODEL_ID}:step-50",
    "fine_tuning_job_id": _JOB_ID,
    "step_number": 50,
    "metrics": {"step": 50, "train_loss": 1.6},
}
_JOB_REQUESTS: dict[str, dict[str, Any]] = {
    "simple": {"model": "SmolLM2-135M-Instruct", "training_file": _FILE_ID},
    "settings": {
        "model": "SmolLM2-135M-Instruct",
        "training_file": _FILE_ID,
        "suffix": "support-answers",
        "seed": 42,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        "metadata": {"ticket": "4711"},
    },
}
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "At most as large as the service allows."},
        "purpose": {"type": "string", "enum": ["fine-tune"], "description": "What the file is for."},
    },
}


def _page_of(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [example],
        "first_id": example["id"],
        "last_id": example["id"],
        "has_more": False,
    }


CREATE_FILE: dict[str, Any] = {
    **documented("Upload a file", answer=_FILE),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": _FORM,
                    "examples": {"JSON lines": {"value": {"file": '{"text": "Once."}\n', "purpose": "fine-tune"}}},
                }
            },
        },
        "parameters": [header_parameter("Idempotency-Key")],
    },
}
RETRIEVE_FILE = documented("Retrieve a file", answer=_FILE)
DELETE_FILE = documented("Delete a file", answer={"id": _FILE_ID, "object": "file", "deleted": True})
FILE_CONTENT = documented(
    "Retrieve the content of a file",
    content={"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
)
CREATE_JOB: dict[str, Any] = {
    **documented("Create a fine-tuning job", answer={**_JOB, "status": "queued", "estimated_finish": None}),
    "openapi_extra": {
        **request_body(JobBody, _JOB_REQUESTS),
        "parameters": [header_parameter("Idempotency-Key")],
    },
}
RETRIEVE_JOB = documented("Retrieve a fine-tuning job", answer=_JOB)


def list_files(query: type[QueryModel]) -> dict[str, Any]:
    return documented("List the files", answer=_page_of(_FILE), query=query)


def list_jobs(query: type[QueryModel]) -> dict[str, Any]:
    return documented("List the fine-tuning jobs", answer=_page_of(_JOB), query=query)


def list_events(query: type[QueryModel]) -> dict[str, Any]:
    return documented("List the events of a fine-tuning job", answer=_page_of(_EVENT), query=query)


def checkpoints(query: type[QueryModel]) -> dict[str, Any]:
    return documented("List the checkpoints of a fine-tuning job", answer=_page_of(_CHECKPOINT), query=query)


def change(name: str) -> dict[str, Any]:
    return documented(f"{name.capitalize()} a fine-tuning job", answer=_JOB, repeatable=True)
