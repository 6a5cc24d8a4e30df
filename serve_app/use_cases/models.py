"""The models that a caller may name: the configured ones, and what the account has trained. Knows no SQL."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deployments.config import ModelConfig
from deployments.errors import GeneratorNotDeployed, InvalidParameter, ModelNotFound
from deployments.types import AdapterRef
from serve_app.jobs.job import TunedModel
from serve_app.use_cases.callers import Principal
from serve_app.use_cases.tuned_models import ComingModel, TunedModels

_TUNED_ID = re.compile("ft_model_[a-z0-9]{1,41}")


@dataclass(frozen=True, slots=True)
class ModelCatalog:
    """Ids and aliases of the configured base models; the first is the default. Pure."""

    models: tuple[ModelConfig, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name in self.names():
            if name in seen:
                raise ValueError(f"two models answer to the name {name!r}: ids and aliases must be distinct")
            seen.add(name)

    def of(self, allowed: frozenset[str] | None) -> "ModelCatalog":
        """The catalog as a key sees it that may use the models of these ids; None: all of them."""
        if allowed is None:
            return self
        return ModelCatalog(tuple(model for model in self.models if model.id in allowed))

    @property
    def default(self) -> ModelConfig:
        """Raises ModelNotFound where there are none."""
        if not self.models:
            raise ModelNotFound("default")
        return self.models[0]

    def names(self) -> Iterable[str]:
        for model in self.models:
            yield model.id
            yield from model.aliases

    def find(self, name: str) -> ModelConfig | None:
        """The model with this id or alias."""
        return next((model for model in self.models if name == model.id or name in model.aliases), None)

    def resolve(self, name: str) -> ModelConfig:
        """The model with this id or alias. Raises ModelNotFound."""
        model = self.find(name)
        if model is None:
            raise ModelNotFound(name)
        return model

    def grantable_id(self, name: str) -> str:
        """The id that lets a key use what this name means. What looks like the id of a fine-tuned model is taken as
        it is: a key may be limited to one that is still to be trained. Raises ModelNotFound."""
        if self.find(name) is None and _TUNED_ID.fullmatch(name):
            return name
        return self.resolve(name).id


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers to a name: a configured model, alone or with an adapter that was trained for it."""

    base: ModelConfig
    tuned: TunedModel | None = None

    @property
    def id(self) -> str:
        return self.base.id if self.tuned is None else self.tuned.id

    @property
    def adapter(self) -> AdapterRef | None:
        return None if self.tuned is None else AdapterRef(self.tuned.id, self.tuned.manifest)


class Models:
    """The one place where a name becomes a model. What a key may not use, and what another account has trained, does
    not exist; a key that is limited to certain models may use a fine-tuned one only where its own id is among them, or
    the key has asked for its training."""

    def __init__(self, catalog: ModelCatalog, tuned: TunedModels) -> None:
        self.catalog = catalog
        self._tuned = tuned

    def default(self, principal: Principal) -> ModelConfig:
        """Raises ModelNotFound where the key may use no configured model."""
        return self.catalog.of(principal.models).default

    async def resolve(self, principal: Principal, name: str) -> ServedModel:
        """What answers to this id or alias; configured models go first. Raises ModelNotFound, StorageError."""
        base = self.catalog.of(principal.models).find(name)
        if base is not None:
            return ServedModel(base)
        tuned = await self.own(principal, name)
        base = self.catalog.find(tuned.base_model)
        if base is None:
            raise ModelNotFound(name)
        return ServedModel(base, tuned)

    async def own(self, principal: Principal, name: str) -> TunedModel:
        """The fine-tuned model of this id, though its base may not be configured any more.

        Raises ModelNotFound, StorageError.
        """
        tuned = await self._tuned.find(principal.account, name) if _TUNED_ID.fullmatch(name) else None
        if tuned is None or not _may_use(principal, tuned):
            raise ModelNotFound(name)
        return tuned

    async def resolve_deployed(self, principal: Principal, name: str) -> ServedModel:
        """The same for who wants to generate. Also raises GeneratorNotDeployed."""
        served = await self.resolve(principal, name)
        if served.tuned is not None and not self._tuned.is_deployed(served.tuned):
            raise GeneratorNotDeployed(name)
        return served

    async def trainable(self, principal: Principal, name: str) -> ModelConfig:
        """The configured model of this name, to train an adapter for.

        Raises ModelNotFound; InvalidParameter for a fine-tuned model: an adapter is not trained further.
        """
        served = await self.resolve(principal, name)
        if served.tuned is not None:
            raise InvalidParameter(f"model must be a configured model; {name!r} is a fine-tuned one", "model")
        return served.base

    async def tuned(self, principal: Principal) -> list[tuple[TunedModel, ModelConfig]]:
        """The fine-tuned models that the key may use, oldest first, each with its base. Those whose base is not
        configured any more are left out. Raises StorageError."""
        found = await self._tuned.list(principal.account)
        based = ((model, self.catalog.find(model.base_model)) for model in found if _may_use(principal, model))
        return [(model, base) for model, base in based if base is not None]

    async def coming(self, principal: Principal, name: str) -> tuple[ComingModel, ModelConfig]:
        """The model that will have this id once it is trained, and its base. Raises ModelNotFound, StorageError."""
        model = await self._tuned.coming(principal.account, name) if _TUNED_ID.fullmatch(name) else None
        base = None if model is None else self.catalog.find(model.base_model)
        if model is not None and base is not None and _may_use(principal, model):
            return model, base
        raise ModelNotFound(name)


def _may_use(principal: Principal, model: TunedModel | ComingModel) -> bool:
    return principal.models is None or model.id in principal.models or model.key_id == principal.key_id
