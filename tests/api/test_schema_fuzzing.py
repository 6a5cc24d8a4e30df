"""Requests made up from the OpenAPI document: no server error, no answer that the document does not know."""

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_app.api import create_api
from serve_app.config import DialectLimits, FineTuningConfig, LimitsConfig
from tests.api.administration import Service, running_service
from tests.fake_fine_tuner import FakeFineTuner
from tests.live_server import serve

EXAMPLES = 15
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def fuzz(operation: Any, mode: GenerationMode, *, base_url: str, key: str) -> None:
    """Sends requests that fit the operation's description, or do not."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        case.call_and_validate(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, checks=CHECKS)

    send()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
async def test_made_up_requests_are_answered_as_described(sqlite_url: str, mode: GenerationMode) -> None:
    unlimited = LimitsConfig(aitextgen=DialectLimits())
    async with (
        running_service(
            sqlite_url,
            limits=unlimited,
            fine_tuner=FakeFineTuner(),
            # Some of the jobs end in time, some do not.
            fine_tuning=FineTuningConfig(hold_s=0.15, min_generator_bytes=1, max_jobs_per_account=4),
        ) as service,
        serve(create_api(service.services)) as port,
    ):
        await asyncio.to_thread(fuzz_all, service, f"http://127.0.0.1:{port}", mode)


def fuzz_all(service: Service, base_url: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    num_operations = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not takes_anything(operation):
            continue  # no request can be wrong
        fuzz(operation, mode, base_url=base_url, key=service.admin_key)
        num_operations += 1
    assert num_operations >= 20


def takes_anything(operation: Any) -> bool:
    raw = operation.definition.raw
    return "requestBody" in raw or "parameters" in raw
