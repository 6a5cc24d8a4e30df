"""OpenAI's fine-tuning API, asked by its own client over a real database and workers that play scripts."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from deployments.errors import InvalidTrainingData
from deployments.training_documents import Conversation
from deployments.types import ChatMessage
from serve_app.api import create_api
from serve_app.config import FineTuningConfig
from tests.api.administration import Service, running_service
from tests.api.conftest import MODEL
from tests.fake_fine_tuner import FakeFineTuner, Script, Silence, checkpoint, finished, progress, started

FILES, JOBS = "/v1/files", "/v1/fine_tuning/jobs"
LINES = b'{"text": "Once upon a time."}\n"There was a fox."\n'
HANGING: Script = (started(), progress(1), checkpoint(1), Silence.FOREVER)


@asynccontextmanager
async def tuning(
    url: str, *scripts: Script, config: FineTuningConfig | None = None
) -> AsyncIterator[tuple[Service, openai.AsyncOpenAI, FakeFineTuner]]:
    """A service, OpenAI's client with a key of `acme`, and what trains."""
    fine_tuner = FakeFineTuner(*scripts)
    async with running_service(
        url, fine_tuner=fine_tuner, fine_tuning=config or FineTuningConfig(retry_s=0.01)
    ) as service:
        key, _ = await service.new_key("acme", scopes=["inference", "fine-tune"])
        http_client = httpx.AsyncClient(transport=httpx.ASGITransport(create_api(service.services)))
        async with openai.AsyncOpenAI(
            api_key=key, base_url="http://test/v1", http_client=http_client, max_retries=0
        ) as client:
            yield service, client, fine_tuner


async def upload(client: openai.AsyncOpenAI, content: bytes = LINES, name: str = "data.jsonl") -> str:
    return (await client.files.create(file=(name, content), purpose="fine-tune")).id


async def ended(service: Service, job_id: str, account: str = "acme") -> None:
    job = await service.services.fine_tuning.wait(account, job_id, timeout_s=20)
    assert job.status.is_final


async def test_file_is_uploaded_listed_read_and_deleted(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        file = await client.files.create(file=("dir/data.jsonl", LINES), purpose="fine-tune")
        assert (file.object, file.filename, file.bytes, file.status) == ("file", "data.jsonl", len(LINES), "processed")
        assert (await client.files.retrieve(file.id)) == file
        assert [found.id async for found in client.files.list()] == [file.id]
        assert (await client.files.content(file.id)).read() == LINES
        stored = await service.services.files.get("acme", file.id)
        assert await service.services.files.documents(stored) == ["Once upon a time.", "There was a fox."]
        assert (await client.files.delete(file.id)).deleted
        for ask in (client.files.retrieve, client.files.delete, client.files.content):
            with pytest.raises(openai.NotFoundError):
                await ask(file.id)
        assert [found async for found in client.files.list()] == []


async def test_conversations_are_kept_as_messages_and_counted_by_the_template(sqlite_url: str) -> None:
    chat = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A fox."}]}
    content = json.dumps(chat).encode()
    too_few = FineTuningConfig(max_tokens=3 * (len("user: Who?\nassistant: A fox.") - 1))
    async with tuning(sqlite_url, config=too_few) as (service, client, _tuner):
        file_id = await upload(client, content)
        stored = await service.services.files.get("acme", file_id)
        assert await service.services.files.documents(stored) == [
            Conversation((ChatMessage("user", "Who?"), ChatMessage("assistant", "A fox.")))
        ]
        with pytest.raises(openai.BadRequestError) as raised:
            await client.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
        assert raised.value.param == "training_file"


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", b"One\n<|endoftext|>\nTwo", ["One", "Two"]),
        ("a.csv", b'text\n"One, two"\nThree\n', ["One, two", "Three"]),
        ("upload", b'"One"\n', ["One"]),
    ],
)
async def test_formats_are_told_by_the_name(sqlite_url: str, name: str, content: bytes, documents: list[str]) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        stored = await service.services.files.get("acme", await upload(client, content, name))
        assert await service.services.files.documents(stored) == documents


async def test_files_are_listed_in_pages_of_either_order(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        ids = [await upload(client, f'"{number}"'.encode()) for number in range(5)]
        assert [file.id async for file in client.files.list(limit=2)] == ids[::-1]
        assert [file.id async for file in client.files.list(limit=2, order="asc")] == ids
        assert [file.id async for file in client.files.list(purpose="batch")] == []


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"purpose": "fine-tune"}, {}, "file"),
        ({"purpose": "fine-tune", "file": "text"}, {}, "file"),
        ({}, {"file": ("a.jsonl", LINES)}, "purpose"),
        ({"purpose": "batch"}, {"file": ("a.jsonl", LINES)}, "purpose"),
        ({"purpose": "fine-tune", "x": "1"}, {"file": ("a.jsonl", LINES)}, "x"),
        ({"purpose": "fine-tune"}, {"file": ("a.jsonl", LINES), "purpose": ("b", b"fine-tune")}, None),
        ({"purpose": ["fine-tune", "fine-tune"]}, {"file": ("a.jsonl", LINES)}, "purpose"),
        ({"purpose": "fine-tune", "expires_after[anchor]": "created_at"}, {"file": ("a", LINES)}, "expires_after"),
        ({"purpose": "fine-tune"}, {"file": ("a.jsonl", b"")}, "file"),
        ({"purpose": "fine-tune"}, {"file": ("a.jsonl", b"{}")}, "file"),
        ({"purpose": "fine-tune"}, {"file": ("a.jsonl", b"\xff")}, "file"),
        ({"purpose": "fine-tune"}, {"file": ("a.pdf", b"%PDF")}, "file"),
        ({"purpose": "fine-tune"}, {"file": ("a" * 201, LINES)}, "file"),
    ],
)
async def test_bad_upload_is_400_and_named(
    sqlite_url: str, data: dict[str, Any], files: dict[str, Any], param: str | None
) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        request = {"data": data, "files": files or {"none": b""}} if files else {"files": to_parts(data)}
        response = await raw(service, client).post(FILES, **request)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert await service.services.files.list("acme") == []


def to_parts(data: dict[str, str]) -> dict[str, Any]:
    """Text fields of a form that has no file."""
    return {name: (None, value) for name, value in data.items()}


def raw(service: Service, client: openai.AsyncOpenAI) -> httpx.AsyncClient:
    return service.with_key(client.api_key)


async def test_upload_is_bounded(sqlite_url: str) -> None:
    async with tuning(sqlite_url, config=FineTuningConfig(max_data_bytes=1000, max_documents=3)) as (_, client, _tuner):
        await upload(client, b'"' + b"x" * 998 + b'"')
        for content in (b'"' + b"x" * 999 + b'"', b'"a"\n' * 4):
            with pytest.raises(openai.BadRequestError) as raised:
                await upload(client, content)
            assert raised.value.param == "file"
        with pytest.raises(openai.APIStatusError) as refused:
            await upload(client, b"x" * 200_000)
        assert refused.value.status_code == 413


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "text/plain", None])
async def test_body_that_is_no_form_is_400(sqlite_url: str, content_type: str | None) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        headers = {} if content_type is None else {"Content-Type": content_type}
        response = await raw(service, client).post(FILES, content=b'{"purpose": "fine-tune"}', headers=headers)
        assert response.status_code == 400


async def test_repeated_upload_is_one_file_though_its_boundary_differs(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        headers = {"Idempotency-Key": "once"}
        first = await client.files.create(file=("a.jsonl", LINES), purpose="fine-tune", extra_headers=headers)
        again = await client.files.create(file=("a.jsonl", LINES), purpose="fine-tune", extra_headers=headers)
        assert first.id == again.id
        with pytest.raises(openai.UnprocessableEntityError):
            await client.files.create(file=("a.jsonl", b'"other"'), purpose="fine-tune", extra_headers=headers)


async def test_job_trains_a_model_that_answers(sqlite_url: str) -> None:
    async with tuning(sqlite_url, (started(), progress(1), checkpoint(1), progress(2), finished())) as (
        service,
        client,
        fine_tuner,
    ):
        file_id, validation_id = await upload(client), await upload(client, b'"held out"')
        job = await client.fine_tuning.jobs.create(
            model="standard",
            training_file=file_id,
            validation_file=validation_id,
            suffix="fox",
            seed=7,
            metadata={"ticket": "4711"},
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5},
                },
            },
        )
        assert (job.object, job.status, job.model, job.fine_tuned_model) == ("fine_tuning.job", "queued", MODEL, None)
        await ended(service, job.id)
        [request] = fine_tuner.requests
        params = request.params
        assert (params.epochs, params.batch_size, params.learning_rate, params.seed) == (2, 4, 1e-4, 7)
        assert request.validation_data is not None
        done = await client.fine_tuning.jobs.retrieve(job.id)
        assert (done.status, done.trained_tokens, done.error) == ("succeeded", 200, None)
        assert done.hyperparameters.model_dump() == {
            "n_epochs": 2,
            "batch_size": 4,
            "learning_rate_multiplier": 0.5,
        }
        assert (done.training_file, done.validation_file, done.seed) == (file_id, validation_id, 7)
        assert done.metadata == {"ticket": "4711"}
        assert done.fine_tuned_model is not None
        model = await client.models.retrieve(done.fine_tuned_model)
        assert model.created >= job.created_at
        answer = await client.chat.completions.create(
            model=done.fine_tuned_model, messages=[{"role": "user", "content": "Who?"}], max_tokens=5
        )
        assert answer.choices[0].message.content
        [saved] = [found async for found in client.fine_tuning.jobs.checkpoints.list(job.id)]
        assert (saved.step_number, saved.metrics.step, saved.metrics.train_loss) == (1, 1, 2.0)
        assert saved.fine_tuning_job_id == job.id
        events = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
        assert len({event.id for event in events}) == len(events) > 4
        assert events[0].message == "The job has successfully completed"
        assert (await client.models.delete(done.fine_tuned_model)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(done.fine_tuned_model)


async def test_what_is_auto_is_chosen_and_shown(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        file_id = await upload(client)
        jobs = [
            await client.fine_tuning.jobs.create(model=MODEL, training_file=file_id, **extra)
            for extra in (
                {},
                {"hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}},
            )
        ]
        for job in jobs:
            assert job.hyperparameters.model_dump() == {
                "n_epochs": 3,
                "batch_size": "auto",
                "learning_rate_multiplier": 1.0,
            }
        assert jobs[0].seed != jobs[1].seed


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"training_file": None}, "training_file"),
        ({"training_file": "file-nobody"}, "training_file"),
        ({"training_file": "\0"}, "training_file"),
        ({"validation_file": "file-nobody"}, "validation_file"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "x\0"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 101}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 5000}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": 1e9}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 101}}}},
            "method.supervised.hyperparameters.n_epochs",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {}}}, "hyperparameters": {}},
            "hyperparameters",
        ),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"n_epochs": 3}, "n_epochs"),
    ],
)
async def test_bad_field_of_a_job_is_400_and_named(sqlite_url: str, changes: dict[str, Any], param: str) -> None:
    async with tuning(sqlite_url) as (service, client, fine_tuner):
        body = {"model": MODEL, "training_file": await upload(client), **changes}
        response = await raw(service, client).post(JOBS, json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert fine_tuner.requests == []
        assert await service.services.fine_tuning.list("acme") == []


async def test_unknown_model_is_404(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        file_id = await upload(client)
        with pytest.raises(openai.NotFoundError):
            await client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file_id)


async def test_failed_job_says_why(sqlite_url: str) -> None:
    script: Script = (InvalidTrainingData("nothing is left", "training_file"),)
    async with tuning(sqlite_url, script) as (service, client, _tuner):
        job = await client.fine_tuning.jobs.create(model=MODEL, training_file=await upload(client))
        await ended(service, job.id)
        job = await client.fine_tuning.jobs.retrieve(job.id)
        assert (job.status, job.fine_tuned_model) == ("failed", None)
        assert job.error is not None
        assert (job.error.code, job.error.message, job.error.param) == (
            "invalid_training_data",
            "nothing is left",
            "training_file",
        )


async def test_job_is_paused_resumed_and_cancelled(sqlite_url: str) -> None:
    async with tuning(sqlite_url, HANGING) as (_, client, fine_tuner):
        jobs = client.fine_tuning.jobs
        job = await jobs.create(model=MODEL, training_file=await upload(client))
        await fine_tuner.silent.wait()
        running = await jobs.retrieve(job.id)
        assert (running.status, running.trained_tokens) == ("running", None)
        assert running.estimated_finish is not None
        assert (await jobs.pause(job.id)).status == "paused"
        fine_tuner.silent.clear()
        assert (await jobs.resume(job.id)).status == "queued"
        await fine_tuner.silent.wait()
        assert (await jobs.cancel(job.id)).status == "cancelled"
        assert (await jobs.cancel(job.id)).status == "cancelled"
        for change in (jobs.pause, jobs.resume):
            with pytest.raises(openai.BadRequestError):
                await change(job.id)
        assert [request.checkpoint for request in fine_tuner.requests] == [None, f"{1:064x}"]


async def test_jobs_are_listed_in_pages_and_by_metadata(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        file_id = await upload(client)
        ids = [
            (
                await client.fine_tuning.jobs.create(
                    model=MODEL, training_file=file_id, metadata={"parity": str(number % 2), "tag": "x"}
                )
            ).id
            for number in range(4)
        ]
        assert [job.id async for job in client.fine_tuning.jobs.list(limit=3)] == ids[::-1]
        odd = client.fine_tuning.jobs.list(metadata={"parity": "1", "tag": "x"})
        assert [job.id async for job in odd] == [ids[3], ids[1]]
        assert [job.id async for job in client.fine_tuning.jobs.list(metadata={"parity": "2"})] == []


@pytest.mark.parametrize(
    ("path", "param"),
    [
        (f"{JOBS}?limit=0", "limit"),
        (f"{JOBS}?limit=101", "limit"),
        (f"{JOBS}?limit=1&limit=2", "limit"),
        (f"{JOBS}?metadata[a]=1&metadata[a]=2", "metadata[a]"),
        (f"{JOBS}?metadata=null", "metadata"),
        (f"{JOBS}?order=asc", "order"),
        (f"{FILES}?order=up", "order"),
        (f"{FILES}?limit=10001", "limit"),
    ],
)
async def test_bad_query_is_400_and_named(sqlite_url: str, path: str, param: str) -> None:
    async with tuning(sqlite_url) as (service, client, _tuner):
        response = await raw(service, client).get(path)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


async def test_events_after_what_is_no_event_are_400(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (_, client, _tuner):
        job = await client.fine_tuning.jobs.create(model=MODEL, training_file=await upload(client))
        for after in ("ftevent-", "7", "ftevent--7", "ftevent-" + "9" * 30):
            with pytest.raises(openai.BadRequestError) as raised:
                await client.fine_tuning.jobs.list_events(job.id, after=after)
            assert raised.value.param == "after"


async def test_what_another_account_owns_is_not_there(sqlite_url: str) -> None:
    async with tuning(sqlite_url, HANGING) as (service, client, fine_tuner):
        file_id = await upload(client)
        job = await client.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
        await fine_tuner.silent.wait()
        for path in (FILES, JOBS):
            assert (await service.admin.get(path)).json()["data"] == []
        for method, path in (
            ("GET", f"{FILES}/{file_id}"),
            ("GET", f"{FILES}/{file_id}/content"),
            ("DELETE", f"{FILES}/{file_id}"),
            ("GET", f"{JOBS}/{job.id}"),
            ("GET", f"{JOBS}/{job.id}/events"),
            ("GET", f"{JOBS}/{job.id}/checkpoints"),
            ("POST", f"{JOBS}/{job.id}/cancel"),
            ("POST", f"{JOBS}/{job.id}/pause"),
            ("POST", f"{JOBS}/{job.id}/resume"),
        ):
            assert (await service.admin.request(method, path)).status_code == 404, path
        response = await service.admin.post(JOBS, json={"model": MODEL, "training_file": file_id})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "training_file")
        assert fine_tuner.num_open == 1


async def test_repeated_request_makes_one_job(sqlite_url: str) -> None:
    async with tuning(sqlite_url) as (service, client, fine_tuner):
        file_id = await upload(client)
        headers = {"Idempotency-Key": "once"}
        first, again = [
            await client.fine_tuning.jobs.create(model=MODEL, training_file=file_id, extra_headers=headers)
            for _ in range(2)
        ]
        assert (first.id, first.seed) == (again.id, again.seed)
        await ended(service, first.id)
        assert len(fine_tuner.requests) == 1
