"""The whole HTTP surface in this process, over fakes of the graph."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from deployments.config import GraphConfig, ModelConfig
from deployments.graph import Generator, Graph
from serve_app.api import create_api
from serve_app.config import (
    AppConfig,
    BillingConfig,
    FineTuningConfig,
    HttpConfig,
    InferKitConfig,
    LimitsConfig,
    TotalGPTConfig,
    WebhooksConfig,
)
from serve_app.services import Services
from serve_app.use_cases.generate import TextGeneration
from serve_app.use_cases.idempotent_runs import IdempotentRuns
from serve_app.use_cases.models import ModelCatalog, Models
from serve_app.use_cases.tuned_models import TunedModels
from tests.fake_idempotency import FakeIdempotentRequests
from tests.fakes import (
    KEY,
    FakeAdmissionStore,
    FakeGenerator,
    FakeKeys,
    FakeTokenizer,
    FakeTunedModels,
    make_admission,
)

MODEL = "test-org/test-model"
OTHER_MODEL = "other-model"


class Absent:
    """A use case that needs a database: tests/api/administration.py has services with one."""


def make_services(
    *,
    generator: Generator | None = None,
    other_generator: Generator | None = None,
    tokenizer: FakeTokenizer | None = None,
    http: HttpConfig | None = None,
    inferkit: InferKitConfig | None = None,
    totalgpt: TotalGPTConfig | None = None,
    billing: BillingConfig | None = None,
    limits: LimitsConfig | None = None,
    admission_store: FakeAdmissionStore | None = None,
    idempotency: FakeIdempotentRequests | None = None,
    fine_tuning: FineTuningConfig | None = None,
    webhooks: WebhooksConfig | None = None,
    tuned: FakeTunedModels | None = None,
    is_ready: bool = True,
) -> Services:
    """Services over fakes. Two models: the default one, which is also `standard` and `test-model`, and another."""
    config = AppConfig(
        graph=GraphConfig(
            models=(
                ModelConfig(id=MODEL, source="nowhere", aliases=("standard", "test-model")),
                ModelConfig(id=OTHER_MODEL, source="nowhere"),
            )
        ),
        http=http or HttpConfig(),
        inferkit=inferkit or InferKitConfig(),
        totalgpt=totalgpt or TotalGPTConfig(),
        billing=billing or BillingConfig(),
        limits=limits or LimitsConfig(),
        fine_tuning=fine_tuning or FineTuningConfig(),
        webhooks=webhooks or WebhooksConfig(),
    )
    graph = Graph(
        tokenizer=tokenizer or FakeTokenizer(),
        generators={
            MODEL: generator or FakeGenerator(),
            OTHER_MODEL: other_generator or FakeGenerator(" from the other model"),
        },
    )
    tuned_models = TunedModels(tuned or FakeTunedModels())
    models = Models(ModelCatalog(config.graph.models), tuned_models)

    admission = make_admission(admission_store, billing=config.billing, limits=config.limits)

    async def ready() -> bool:
        return is_ready

    return Services(
        config=config,
        graph=graph,
        models=models,
        tuned_models=tuned_models,
        files=Absent(),
        fine_tuning=Absent(),
        document_training=Absent(),
        webhooks=Absent(),
        generation=TextGeneration(graph, models, admission),
        accounts=Absent(),
        keys=FakeKeys(),
        admission=admission,
        usage=Absent(),
        audit=Absent(),
        idempotency=IdempotentRuns(idempotency or FakeIdempotentRequests(), retry_s=0.01),
        is_ready=ready,
    )


ClientFactory = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def make_client() -> AsyncIterator[ClientFactory]:
    """`await make_client(key=..., generator=..., ...)`: a client that sends `key` (None: no key); see make_services.

    It keeps the whole of a streamed answer until its end; framing is tested over sockets.
    """
    async with AsyncExitStack() as stack:

        async def make(
            *, key: str | None = KEY, services: Services | None = None, **parts: object
        ) -> httpx.AsyncClient:
            api = create_api(services or make_services(**parts))  # type: ignore[arg-type]
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(api),
                base_url="http://test",
                headers={"Authorization": f"Bearer {key}"} if key else {},
            )
            return await stack.enter_async_context(client)

        yield make
