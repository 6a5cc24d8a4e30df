"""Fine-tuned models: found by their ids, put into service and taken out, deleted. Knows no HTTP and no SQL."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from deployments.errors import InvalidParameter, ModelNotFound
from serve_app.jobs.job import TunedModel

CACHE_TTL_S = 5.0
"""How long a process may go on serving a model after another one has undeployed or deleted it, in seconds."""

_MAX_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class ComingModel:
    """A model whose training has not ended. key_id: of the key that asked for it."""

    id: str
    key_id: str
    base_model: str
    name: str
    created_at: float


class TunedModelStore(Protocol):
    """The published models of all accounts. Each method narrows to one; what was deleted is not there."""

    async def get(self, account: str, model_id: str) -> TunedModel | None: ...

    async def coming(self, account: str, model_id: str) -> ComingModel | None:
        """The model of this id, while the job that shall make it is open."""

    async def list(self, account: str) -> Sequence[TunedModel]:
        """Oldest first."""

    async def set_deployed(
        self, account: str, model_id: str, *, deployed: bool, undeploy_at: float | None
    ) -> TunedModel | None:
        """The model as it is then; None where there is no such model."""

    async def delete(self, account: str, model_id: str, now: float) -> bool:
        """False where there is no such model."""


class TunedModels:
    """A model that was found is cached for `CACHE_TTL_S`, so that one in use costs no query for each request. That
    there is none is never cached: a model can be used as soon as it is published."""

    def __init__(
        self,
        store: TunedModelStore,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._now = now
        self._monotonic = monotonic
        self._cache: OrderedDict[tuple[str, str], tuple[float, TunedModel]] = OrderedDict()

    async def find(self, account: str, model_id: str) -> TunedModel | None:
        """The model, perhaps as it was up to `CACHE_TTL_S` ago."""
        place = (account, model_id)
        asked_at = self._monotonic()
        read_at, model = self._cache.get(place, (0.0, None))
        if model is not None and asked_at - read_at < CACHE_TTL_S:
            return model
        model = await self._store.get(account, model_id)
        if model is None:
            self._cache.pop(place, None)
            return None
        self._cache[place] = (asked_at, model)
        self._cache.move_to_end(place)
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return model

    async def get(self, account: str, model_id: str) -> TunedModel:
        """The model as it is now. Raises ModelNotFound."""
        model = await self._store.get(account, model_id)
        if model is None:
            raise ModelNotFound(model_id)
        return model

    async def coming(self, account: str, model_id: str) -> ComingModel | None:
        """The model of this id, while it is being trained."""
        return await self._store.coming(account, model_id)

    async def list(self, account: str) -> Sequence[TunedModel]:
        """All of the account's, oldest first."""
        return await self._store.list(account)

    def is_deployed(self, model: TunedModel) -> bool:
        return model.deployed and (model.undeploy_at is None or self._now() < model.undeploy_at)

    async def deploy(self, account: str, model_id: str, *, undeploy_at: float | None = None) -> TunedModel:
        """Puts the model into service, until this time if one is given. Raises ModelNotFound, InvalidParameter."""
        if undeploy_at is not None and undeploy_at <= self._now():
            raise InvalidParameter("autoUndeployAt must be in the future", "autoUndeployAt")
        return await self._set_deployed(account, model_id, deployed=True, undeploy_at=undeploy_at)

    async def undeploy(self, account: str, model_id: str) -> TunedModel:
        """Takes the model out of service, until it is deployed again. Raises ModelNotFound."""
        return await self._set_deployed(account, model_id, deployed=False, undeploy_at=None)

    async def delete(self, account: str, model_id: str) -> None:
        """Ends the model for good. Raises ModelNotFound."""
        is_deleted = await self._store.delete(account, model_id, self._now())
        self._cache.pop((account, model_id), None)
        if not is_deleted:
            raise ModelNotFound(model_id)

    async def _set_deployed(
        self, account: str, model_id: str, *, deployed: bool, undeploy_at: float | None
    ) -> TunedModel:
        model = await self._store.set_deployed(account, model_id, deployed=deployed, undeploy_at=undeploy_at)
        self._cache.pop((account, model_id), None)
        if model is None:
            raise ModelNotFound(model_id)
        return model
