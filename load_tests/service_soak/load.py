"""The mixed load: accounts and keys, clients that send requests at random, jobs, a scraper of the measurements."""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from load_tests.service_soak.findings import Findings
from load_tests.service_soak.generation import KINDS, Asking
from load_tests.service_soak.others import bad, limited, page
from load_tests.service_soak.training import Trainer, TrainingRefused, receiving

Kind = Callable[[Asking], Awaitable[None]]

_CREDIT = 10**10
_NUM_ACCOUNTS = 3
_BURST = 16
_SCRAPE_S = 15
_ERRORS = (aiohttp.ClientError, TimeoutError, KeyError, ValueError)
"""What a broken connection or an answer of another form raises in a client."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Texts of keys. `common` may only generate, each two of one account; `limited` may do so rarely; `trainer` may
    train too."""

    common: tuple[str, ...]
    limited: str
    trainer: str


@dataclass
class Load:
    """What can be asked of a running load."""

    findings: Findings
    trainer: Trainer


async def make_keys(session: aiohttp.ClientSession, admin_key: str) -> Keys:
    """In new accounts that have credit. Raises aiohttp.ClientResponseError."""

    async def create(path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {admin_key}"}
        async with session.post(f"/v1/admin/{path}", json=body, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def key(account: str, **fields: Any) -> str:
        limits: dict[str, Any] = {"aitextgen": {"windows": []}}
        return str((await create(f"accounts/{account}/keys", {"name": "soak", "limits": limits} | fields))["key"])

    for account in (*map(str, range(_NUM_ACCOUNTS)), "trainer"):
        await create("accounts", {"id": f"soak-{account}", "credit": _CREDIT})
    windows = [{"name": "minute", "quota": 10, "period_s": 60}]
    return Keys(
        common=tuple([await key(f"soak-{number}") for number in range(_NUM_ACCOUNTS) for _ in range(2)]),
        limited=await key("soak-0", limits={"aitextgen": {"windows": windows}}),
        trainer=await key("soak-trainer", scopes=["inference", "fine-tune"]),
    )


@asynccontextmanager
async def running_load(
    url: str, admin_key: str, measurements: str, *, num_clients: int, pause_s: float, train_every_s: float, seed: int
) -> AsyncIterator[Load]:
    """The load, for as long as the context lasts; what is under way at its end is finished.

    num_clients: each sends a request, pauses for `pause_s` on average, and goes on; once a minute `_BURST` requests
    come at the same time. measurements: the address that Prometheus would ask. train_every_s: from a job to the next,
    once there are as many models as are kept.
    """
    stopped = asyncio.Event()
    findings = Findings()
    async with (
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**20) as session,
        receiving(findings) as receiver,
    ):
        keys = await make_keys(session, admin_key)
        trainer = Trainer(session, keys.trainer, receiver, findings, random.Random(f"{seed} trainer"))  # noqa: S311
        await trainer.subscribe()

        async def send(rng: random.Random) -> None:
            kind, asking = _choose(session, findings, rng, keys, trainer.models)
            try:
                await kind(asking)
            except _ERRORS as error:
                findings.problem(f"{kind.__name__}: {error!r}")

        async def client(number: int) -> None:
            rng = random.Random(f"{seed} client {number}")  # noqa: S311
            while not stopped.is_set():
                await send(rng)
                await _pause(stopped, rng.expovariate(1 / pause_s))

        async def bursts() -> None:
            rng = random.Random(f"{seed} bursts")  # noqa: S311
            while not await _pause(stopped, 60):
                await asyncio.gather(*(send(random.Random(rng.random())) for _ in range(_BURST)))  # noqa: S311

        async def train() -> None:
            while not stopped.is_set():
                try:
                    await trainer.train()
                except (TrainingRefused, *_ERRORS) as error:
                    findings.problem(f"training: {error!r}")
                await _pause(stopped, train_every_s if trainer.has_all else 0.1)

        async def scrape() -> None:
            while not await _pause(stopped, _SCRAPE_S):
                async with session.get(measurements) as answer:
                    findings.answers["measurements", answer.status] += 1
                    await answer.read()

        async with asyncio.TaskGroup() as group:
            for work in (*map(client, range(num_clients)), bursts(), train(), scrape()):
                group.create_task(work)
            try:
                yield Load(findings, trainer)
            finally:
                stopped.set()


def _choose(
    session: aiohttp.ClientSession, findings: Findings, rng: random.Random, keys: Keys, models: list[str]
) -> tuple[Kind, Asking]:
    """Every fifth generates with the trained models, where there are any."""
    kinds: dict[Kind, int] = {**KINDS, bad: 3, page: 2, limited: 1}
    [kind] = rng.choices(list(kinds), list(kinds.values()))
    key, model = rng.choice(keys.common), "standard"
    if kind is limited:
        key = keys.limited
    elif kind in KINDS and models and rng.random() < 0.2:
        key, model = keys.trainer, rng.choice(models)
    return kind, Asking(session, findings, rng, key, model)


async def _pause(stopped: asyncio.Event, seconds: float) -> bool:
    """Ends early when the load is stopped, and says whether it is."""
    try:
        await asyncio.wait_for(stopped.wait(), seconds)
    except TimeoutError:
        return False
    return True


def median_ms(seconds: list[float]) -> float | None:
    return round(statistics.median(seconds) * 1000, 1) if seconds else None
