"""`POST /v1/aitextgen/finetune` over a real database and a dispatcher whose workers play scripts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from deployments.errors import InvalidTrainingData, TrainingFailed
from serve_app.config import FineTuningConfig, HttpConfig
from serve_app.use_cases.idempotency import KeptAnswer
from tests.api.administration import Service, running_service
from tests.api.conftest import MODEL, OTHER_MODEL
from tests.fake_fine_tuner import FakeFineTuner, Script, Silence, finished, progress, started
from tests.fakes import FakeGenerator

PATH = "/v1/aitextgen/finetune"
DATA = ["Once upon a time there was a fox.", "It lived by the sea."]


@asynccontextmanager
async def tuning(
    url: str, *scripts: Script, hold_s: float = 30.0, **parts: Any
) -> AsyncIterator[tuple[Service, httpx.AsyncClient, FakeFineTuner]]:
    """A service, a client of the account `acme` that may fine-tune and generate, and what trains."""
    fine_tuner = FakeFineTuner(*scripts)
    config = parts.pop("config", FineTuningConfig(hold_s=hold_s, retry_s=0.01))
    async with running_service(url, fine_tuner=fine_tuner, fine_tuning=config, **parts) as service:
        key, _ = await service.new_key("acme", scopes=["inference", "fine-tune"])
        async with service.with_key(key) as client:
            yield service, client, fine_tuner


HANGING: Script = (started(), progress(1), Silence.FOREVER)


async def test_documented_request_is_answered_with_exactly_the_documented_keys(sqlite_url: str) -> None:
    generator = FakeGenerator()
    async with tuning(sqlite_url, generator=generator) as (_, client, fine_tuner):
        response = await client.post(PATH, json={"training_data": DATA, "epochs": 3, "learning_rate": 5e-5})
        assert response.status_code == 200, response.text
        body = response.json()
        assert list(body) == ["status", "model_id", "training_time"]
        assert body["status"] == "success"
        assert isinstance(body["training_time"], float)
        [request] = fine_tuner.requests
        assert body["model_id"] == request.model_id
        assert (request.base_model, request.account) == (MODEL, "acme")
        # Within the same second it generates, on every API.
        for path, asked in (
            ("/v1/aitextgen/generate", {"prompt": "x", "model": body["model_id"]}),
            (f"/v1/models/{body['model_id']}/generate", {"length": 20}),
            ("/v1/completions", {"prompt": "x", "model": body["model_id"]}),
        ):
            assert (await client.post(path, json=asked)).status_code == 200
        assert {request.adapter.digest for request in generator.requests if request.adapter} == {"a" * 64}
        assert len(generator.requests) == 3


async def test_defaults_are_those_of_the_documentation(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, fine_tuner):
        assert (await client.post(PATH, json={"training_data": DATA})).status_code == 200
        [request] = fine_tuner.requests
        assert (request.params.epochs, request.params.learning_rate) == (3, 5e-5)


async def test_settings_reach_the_worker(sqlite_url: str) -> None:
    settings = {
        "epochs": 5,
        "learning_rate": 1e-3,
        "seed": 7,
        "batch_size": 4,
        "sequence_length": 128,
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.1,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "validation_split": 0.25,
    }
    async with tuning(sqlite_url) as (service, client, fine_tuner):
        response = await client.post(
            PATH, json={"training_data": DATA, **settings, "model": OTHER_MODEL, "name": "my-fox"}
        )
        assert response.status_code == 200, response.text
        [request] = fine_tuner.requests
        assert request.base_model == OTHER_MODEL
        assert {name: getattr(request.params, name) for name in settings} == settings
        model = (await client.get(f"/v1/models/{response.json()['model_id']}")).json()
        assert (model["name"], model["parent"]) == ("my-fox", OTHER_MODEL)
        [file] = await service.services.files.list("acme")
        assert await service.services.files.documents(file) == DATA


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"training_data": None}, "training_data"),
        ({"training_data": []}, "training_data"),
        ({"training_data": "text"}, "training_data"),
        ({"training_data": {"0": "text"}}, "training_data"),
        ({"training_data": ["a", "b", "c", ""]}, "training_data[3]"),
        ({"training_data": ["a", 5]}, "training_data[1]"),
        ({"training_data": ["a", None]}, "training_data[1]"),
        ({"training_data": ["a", ["b"]]}, "training_data[1]"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 101}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": None}, "epochs"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": -1e-5}, "learning_rate"),
        ({"learning_rate": 1.5}, "learning_rate"),
        ({"learning_rate": "5e-5"}, "learning_rate"),
        ({"learning_rate": True}, "learning_rate"),
        ({"rank": 0}, "rank"),
        ({"rank": 257}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1}, "dropout"),
        ({"validation_split": 0.9}, "validation_split"),
        ({"batch_size": 0}, "batch_size"),
        ({"sequence_length": 1}, "sequence_length"),
        ({"seed": -1}, "seed"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x\0"}, "name"),
        ({"num_workers": 0}, "num_workers"),
        ({"texts": ["x"]}, "texts"),
    ],
)
async def test_bad_field_is_400_at_once_and_named(sqlite_url: str, changes: dict[str, Any], param: str) -> None:
    async with tuning(sqlite_url) as (service, client, fine_tuner):
        response = await client.post(PATH, json={"training_data": DATA, **changes})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param
        assert fine_tuner.requests == []
        assert await service.services.fine_tuning.list("acme") == []
        assert await service.services.files.list("acme") == []


@pytest.mark.parametrize(
    ("config", "data", "param"),
    [
        (FineTuningConfig(max_documents=2), ["a", "b", "c"], "training_data"),
        (FineTuningConfig(max_data_bytes=10), ["aaaaa", "bbbbb", "c"], "training_data[2]"),
        (FineTuningConfig(max_data_bytes=10), ["aaaaa", "ééé"], "training_data[1]"),
        (FineTuningConfig(max_tokens=8), ["aaa"], "training_data"),
        (FineTuningConfig(), ["a", "b", "\u200b"], "training_data[2]"),
    ],
)
async def test_data_that_cannot_be_trained_on_is_400_at_once(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, config: FineTuningConfig, data: list[str], param: str
) -> None:
    async with tuning(sqlite_url, config=config) as (service, client, fine_tuner):

        async def count(model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
            del model
            return tuple(len(text.strip("\u200b")) for text in texts)

        monkeypatch.setattr(service.services.graph.tokenizer, "count", count)
        response = await client.post(PATH, json={"training_data": data})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_training_data", param)
        assert fine_tuner.requests == []
        assert await service.services.files.list("acme") == []


async def test_data_may_be_larger_than_other_bodies_and_is_bounded(sqlite_url: str) -> None:
    config = FineTuningConfig(max_data_bytes=2000)
    async with tuning(sqlite_url, config=config, http=HttpConfig(max_body_bytes=500)) as (_, client, _tuner):
        assert (await client.post(PATH, json={"training_data": ["x" * 1990]})).status_code == 200
        response = await client.post(PATH, json={"training_data": ["x" * 20_000]})
        assert response.status_code == 413
        response = await client.post(PATH, content=b"training_data=x", headers={"Content-Type": "text/plain"})
        assert response.status_code == 400


async def test_unknown_and_fine_tuned_models_cannot_be_trained(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        response = await client.post(PATH, json={"training_data": DATA, "model": "nobody"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        tuned = (await client.post(PATH, json={"training_data": DATA})).json()["model_id"]
        response = await client.post(PATH, json={"training_data": DATA, "model": tuned})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


async def test_scope_is_required(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, _, fine_tuner):
        response = await service.client.post(PATH, json={"training_data": DATA})
        assert response.status_code == 403
        assert fine_tuner.requests == []


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (TrainingFailed("the loss ran away"), 500, "training_failed"),
        (InvalidTrainingData("nothing is left after tokenising"), 400, "invalid_training_data"),
    ],
)
async def test_training_that_fails_in_time_is_an_error(sqlite_url: str, end: Exception, status: int, code: str) -> None:
    async with tuning(sqlite_url, (started(), end)) as (_, client, _tuner):
        response = await client.post(PATH, json={"training_data": DATA})
        assert response.status_code == status
        assert response.json()["error"]["code"] == code
        [job] = (await client.get(PATH)).json()["data"]
        assert (job["status"], job["model_id"], job["error"]["code"]) == ("failed", None, code)


@pytest.mark.parametrize(
    ("headers", "hold_s", "applied"),
    [
        ({}, 0.2, None),
        ({"Prefer": "respond-async"}, 30.0, "respond-async"),
        ({"Prefer": "wait=0"}, 30.0, "wait=0"),
        ({"Prefer": "respond-async, wait=0"}, 30.0, "respond-async, wait=0"),
    ],
)
async def test_training_that_takes_longer_is_answered_with_where_to_look(
    sqlite_url: str, headers: dict[str, str], hold_s: float, applied: str | None
) -> None:
    async with tuning(sqlite_url, HANGING, hold_s=hold_s) as (_, client, fine_tuner):
        response = await client.post(PATH, json={"training_data": DATA}, headers=headers)
        assert response.status_code == 202
        body = response.json()
        assert list(body) == ["status", "job_id", "model_id"]
        assert body["status"] in ("queued", "running")
        assert response.headers["location"] == f"{PATH}/{body['job_id']}"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers.get("preference-applied") == applied
        await fine_tuner.silent.wait()
        job = (await client.get(response.headers["location"])).json()
        assert (job["status"], job["job_id"], job["model_id"]) == ("running", body["job_id"], body["model_id"])
        assert (await client.get(f"/v1/models/{body['model_id']}")).json()["deploymentStage"] == "Deploying"


async def test_wait_is_ended_by_the_end_of_the_training(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        response = await client.post(PATH, json={"training_data": DATA}, headers={"Prefer": "wait=20"})
        assert (response.status_code, response.json()["status"]) == (200, "success")


async def test_client_that_goes_away_cancels_nothing(sqlite_url: str) -> None:
    gate: Script = (started(), progress(1), Silence.FOREVER)
    async with tuning(sqlite_url, gate, (started(1), progress(2), finished())) as (service, client, fine_tuner):
        call = asyncio.create_task(client.post(PATH, json={"training_data": DATA}))
        await fine_tuner.silent.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert fine_tuner.num_open == 1
        [job] = await service.services.fine_tuning.list("acme")
        assert job.status == "running"


async def test_client_that_goes_away_while_its_job_is_made_gets_the_job_all_the_same(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tuning(sqlite_url) as (service, client, fine_tuner):
        counting, may_count = asyncio.Event(), asyncio.Event()

        async def count(model: str, texts: tuple[str, ...]) -> tuple[int, ...]:
            del model
            counting.set()
            await may_count.wait()
            return tuple(map(len, texts))

        monkeypatch.setattr(service.services.graph.tokenizer, "count", count)
        headers = {"Idempotency-Key": "once"}
        call = asyncio.create_task(client.post(PATH, json={"training_data": DATA}, headers=headers))
        await counting.wait()
        call.cancel()
        running = await client.post(PATH, json={"training_data": DATA}, headers=headers)
        assert (running.status_code, running.json()["error"]["code"]) == (409, "conflict")
        may_count.set()
        await asyncio.gather(call, return_exceptions=True)
        while not (jobs := await service.services.fine_tuning.list("acme")):
            await asyncio.sleep(0.01)
        await service.services.fine_tuning.wait("acme", jobs[0].id, timeout_s=20)
        again = await client.post(PATH, json={"training_data": DATA}, headers=headers)
        assert (again.status_code, again.json()["model_id"]) == (200, jobs[0].model_id)
        assert len(fine_tuner.requests) == 1


async def test_finished_job_tells_what_the_waiting_client_was_told(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        answer = (await client.post(PATH, json={"training_data": DATA, "name": "fox"})).json()
        [listed] = (await client.get(PATH)).json()["data"]
        job = (await client.get(f"{PATH}/{listed['job_id']}")).json()
        assert job == listed
        assert {name: job[name] for name in answer} == answer
        assert (job["name"], job["step"], job["total_steps"], job["trained_tokens"]) == ("fox", 2, 2, 200)
        assert job["error"] is None
        events = (await client.get(f"{PATH}/{job['job_id']}/events", params={"limit": 2})).json()
        assert (len(events["data"]), events["has_more"]) == (2, True)
        seen = list(events["data"])
        while events["has_more"]:
            events = (
                await client.get(f"{PATH}/{job['job_id']}/events", params={"limit": 2, "after": events["next"]})
            ).json()
            seen += events["data"]
        ids = [event["id"] for event in seen]
        assert ids == sorted(set(ids), reverse=True)
        assert [event["data"]["train_loss"] for event in seen if event["type"] == "metrics"] == [2.5, 2.5]


async def test_job_is_cancelled_and_its_waiting_client_told(sqlite_url: str) -> None:
    async with tuning(sqlite_url, HANGING) as (_, client, fine_tuner):
        call = asyncio.create_task(client.post(PATH, json={"training_data": DATA}))
        await fine_tuner.silent.wait()
        [job] = (await client.get(PATH)).json()["data"]
        for _ in range(2):
            response = await client.post(f"{PATH}/{job['job_id']}/cancel")
            assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        response = await call
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")
        assert (await client.get(f"/v1/models/{job['model_id']}")).status_code == 404


async def test_jobs_of_another_account_are_not_there(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        await client.post(PATH, json={"training_data": DATA})
        [job] = (await client.get(PATH)).json()["data"]
        assert (await service.admin.get(PATH)).json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            for job_id in (job["job_id"], "ftjob-nobody", "%00"):
                response = await service.admin.request(method, f"{PATH}/{job_id}{path}")
                assert response.status_code == 404, (method, path)


class TestIdempotencyKey:
    HEADERS = {"Idempotency-Key": "once"}  # noqa: RUF012

    async def test_repeated_request_trains_once_and_gives_the_same_answer(self, sqlite_url: str) -> None:
        async with tuning(sqlite_url) as (_, client, fine_tuner):
            first = await client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS)
            again = await client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS)
            assert first.json() == again.json()
            assert "idempotent-replayed" not in first.headers
            assert again.headers["idempotent-replayed"] == "true"
            other = await client.post(PATH, json={"training_data": ["other"]}, headers=self.HEADERS)
            assert other.status_code == 422
            assert len(fine_tuner.requests) == 1

    async def test_repeated_request_waits_for_the_job_of_a_client_that_went_away(self, sqlite_url: str) -> None:
        async with tuning(sqlite_url, HANGING) as (_, client, fine_tuner):
            call = asyncio.create_task(client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS))
            await fine_tuner.silent.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            response = await client.post(
                PATH, json={"training_data": DATA}, headers={**self.HEADERS, "Prefer": "respond-async"}
            )
            assert response.status_code == 202
            [job] = (await client.get(PATH)).json()["data"]
            assert response.json()["job_id"] == job["job_id"]
            assert len(fine_tuner.requests) == 1

    async def test_answer_that_was_lost_with_its_process_makes_no_second_job(
        self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with tuning(sqlite_url) as (service, client, fine_tuner):
            runs = service.services.idempotency

            async def die(account: str, key: str, answer: KeptAnswer) -> None:
                """The job is stored, its id is not kept, and another process may take the key."""
                del answer
                await runs.abandon(account, key)

            monkeypatch.setattr(runs, "finish", die)
            first = await client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS)
            again = await client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS)
            assert "idempotent-replayed" not in again.headers
            assert first.json() == again.json()
            assert len(fine_tuner.requests) == 1
            assert len(await service.services.files.list("acme")) == 1

    async def test_refusal_leaves_the_key_free(self, sqlite_url: str) -> None:
        async with tuning(sqlite_url, config=FineTuningConfig(max_tokens=50)) as (_, client, _tuner):
            refused = await client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS)
            assert refused.status_code == 400
            accepted = await client.post(PATH, json={"training_data": ["short"]}, headers=self.HEADERS)
            assert accepted.status_code == 200

    async def test_failed_job_is_not_tried_again_under_its_key(self, sqlite_url: str) -> None:
        script: Script = (started(), TrainingFailed("for good"))
        async with tuning(sqlite_url, script) as (_, client, fine_tuner):
            for _ in range(2):
                response = await client.post(PATH, json={"training_data": DATA}, headers=self.HEADERS)
                assert response.status_code == 500
            assert len(fine_tuner.requests) == 1


async def test_requests_count_in_the_windows_of_the_key(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        for expected, body in ((99, {"training_data": DATA}), (98, {"training_data": []})):
            response = await client.post(PATH, json=body)
            assert response.headers["ratelimit"].startswith(f'"minute";r={expected};')
        assert "ratelimit" not in (await client.get(PATH)).headers
