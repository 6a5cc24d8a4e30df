"""The configured models by the names they answer to. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.config import ModelConfig
from deployments.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class ModelCatalog:
    """Ids and aliases of the base models; the first configured model is the default."""

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

    def resolve(self, name: str) -> ModelConfig:
        """The model with this id or alias. Raises ModelNotFound."""
        for model in self.models:
            if name == model.id or name in model.aliases:
                return model
        raise ModelNotFound(name)
