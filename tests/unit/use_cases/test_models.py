"""From names to models: configured ones, then what the account has trained; what a key may not use is not there."""

from dataclasses import replace

import pytest

from deployments.config import ModelConfig
from deployments.errors import GeneratorNotDeployed, ModelNotFound
from deployments.types import AdapterRef
from serve_app.jobs.job import TunedModel
from serve_app.use_cases.callers import Principal
from serve_app.use_cases.models import ModelCatalog, Models
from serve_app.use_cases.tuned_models import CACHE_TTL_S, ComingModel, TunedModels
from tests.fakes import FakeTunedModels

BASE = ModelConfig(id="base", source="nowhere", aliases=("standard",))
TUNED = TunedModel("ft_model_1", "acme", "trainer", "base", "ftjob-1", "mine", "d" * 64, 1000, 5.0)
ACME = Principal("acme", "key")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_models(store: FakeTunedModels, *bases: ModelConfig, clock: Clock | None = None) -> tuple[Models, TunedModels]:
    clock = clock or Clock()
    tuned = TunedModels(store, now=clock, monotonic=clock)
    return Models(ModelCatalog(bases or (BASE,)), tuned), tuned


async def test_name_is_that_of_a_configured_model_or_of_the_accounts_own() -> None:
    models, _ = make_models(FakeTunedModels(TUNED))
    for name in ("base", "standard"):
        served = await models.resolve(ACME, name)
        assert (served.id, served.base, served.adapter) == ("base", BASE, None)
    served = await models.resolve(ACME, "ft_model_1")
    assert (served.id, served.base, served.adapter) == ("ft_model_1", BASE, AdapterRef("ft_model_1", "d" * 64))


async def test_what_another_account_has_trained_does_not_exist() -> None:
    models, _ = make_models(FakeTunedModels(TUNED))
    stranger = Principal("stranger", "key")
    await models.resolve(ACME, "ft_model_1")
    with pytest.raises(ModelNotFound):
        await models.resolve(stranger, "ft_model_1")
    assert await models.tuned(stranger) == []


async def test_limited_key_uses_a_trained_model_only_where_its_own_id_is_listed() -> None:
    models, _ = make_models(FakeTunedModels(TUNED))
    only_base = replace(ACME, models=frozenset({"base"}))
    only_tuned = replace(ACME, models=frozenset({"ft_model_1"}))
    with pytest.raises(ModelNotFound):
        await models.resolve(only_base, "ft_model_1")
    assert await models.tuned(only_base) == []
    assert (await models.resolve(only_tuned, "ft_model_1")).id == "ft_model_1"
    assert await models.tuned(only_tuned) == [(TUNED, BASE)]
    with pytest.raises(ModelNotFound):
        await models.resolve(only_tuned, "base")
    with pytest.raises(ModelNotFound):
        models.default(only_tuned)


async def test_limited_key_uses_what_it_has_trained_itself() -> None:
    coming = ComingModel("ft_model_2", "trainer", "base", "next", 7.0)
    models, _ = make_models(FakeTunedModels(TUNED, coming=[coming]))
    trainer = Principal("acme", "trainer", models=frozenset({"base"}))
    assert (await models.resolve(trainer, "ft_model_1")).tuned == TUNED
    assert await models.tuned(trainer) == [(TUNED, BASE)]
    assert await models.coming(trainer, "ft_model_2") == (coming, BASE)
    # A key of another account has nothing of it, whatever its id.
    with pytest.raises(ModelNotFound):
        await models.resolve(replace(trainer, account="stranger"), "ft_model_1")


async def test_configured_model_hides_a_trained_one_of_the_same_name() -> None:
    models, _ = make_models(FakeTunedModels(TUNED), BASE, ModelConfig(id="ft_model_1", source="elsewhere"))
    assert (await models.resolve(ACME, "ft_model_1")).adapter is None


async def test_model_whose_base_is_not_configured_any_more_is_not_there() -> None:
    models, _ = make_models(FakeTunedModels(TUNED), ModelConfig(id="another", source="nowhere"))
    with pytest.raises(ModelNotFound):
        await models.resolve(ACME, "ft_model_1")
    assert await models.tuned(ACME) == []
    assert await models.own(ACME, "ft_model_1") == TUNED


async def test_model_in_use_costs_one_query_in_a_while() -> None:
    store, clock = FakeTunedModels(TUNED), Clock()
    models, _ = make_models(store, clock=clock)
    for _ in range(3):
        await models.resolve(ACME, "ft_model_1")
    assert store.num_reads == 1
    clock.now += CACHE_TTL_S
    await models.resolve(ACME, "ft_model_1")
    assert store.num_reads == 2


async def test_model_is_found_as_soon_as_it_is_published() -> None:
    store = FakeTunedModels()
    models, _ = make_models(store)
    with pytest.raises(ModelNotFound):
        await models.resolve(ACME, "ft_model_1")
    store.models["ft_model_1"] = TUNED
    assert (await models.resolve(ACME, "ft_model_1")).id == "ft_model_1"


@pytest.mark.parametrize("name", ["", "nobody", "ft_model_", "ft_model_A", "ft_model_1\n", "ft_model_" + "a" * 50])
async def test_names_that_no_trained_model_can_have_ask_no_database(name: str) -> None:
    store = FakeTunedModels()
    models, _ = make_models(store)
    with pytest.raises(ModelNotFound):
        await models.resolve(ACME, name)
    assert store.num_reads == 0


async def test_undeployed_model_is_found_but_generates_nothing() -> None:
    models, tuned = make_models(FakeTunedModels(TUNED))
    await models.resolve_deployed(ACME, "ft_model_1")
    await tuned.undeploy("acme", "ft_model_1")
    assert (await models.resolve(ACME, "ft_model_1")).id == "ft_model_1"
    with pytest.raises(GeneratorNotDeployed):
        await models.resolve_deployed(ACME, "ft_model_1")
    await tuned.deploy("acme", "ft_model_1")
    await models.resolve_deployed(ACME, "ft_model_1")


async def test_deployment_ends_by_itself_at_its_time() -> None:
    clock = Clock()
    models, tuned = make_models(FakeTunedModels(TUNED), clock=clock)
    await tuned.deploy("acme", "ft_model_1", undeploy_at=1002.0)
    await models.resolve_deployed(ACME, "ft_model_1")
    clock.now = 1002.0
    with pytest.raises(GeneratorNotDeployed):
        await models.resolve_deployed(ACME, "ft_model_1")


async def test_deleted_model_is_gone_at_once() -> None:
    models, tuned = make_models(FakeTunedModels(TUNED))
    await models.resolve(ACME, "ft_model_1")
    await tuned.delete("acme", "ft_model_1")
    with pytest.raises(ModelNotFound):
        await models.resolve(ACME, "ft_model_1")
    with pytest.raises(ModelNotFound):
        await tuned.delete("acme", "ft_model_1")


@pytest.mark.parametrize("account", ["acme", "stranger"])
async def test_nobody_changes_what_is_not_there(account: str) -> None:
    store = FakeTunedModels(*(() if account == "acme" else (TUNED,)))
    _, tuned = make_models(store)
    for attempt in (tuned.get, tuned.deploy, tuned.undeploy, tuned.delete):
        with pytest.raises(ModelNotFound):
            await attempt(account, "ft_model_1")
    assert list(store.models.values()) in ([], [TUNED])


async def test_model_in_training_is_coming_and_not_yet_there() -> None:
    coming = ComingModel("ft_model_2", "trainer", "base", "next", 7.0)
    models, _ = make_models(FakeTunedModels(coming=[coming]))
    assert await models.coming(ACME, "ft_model_2") == (coming, BASE)
    for principal, name in ((ACME, "ft_model_3"), (replace(ACME, models=frozenset({"base"})), "ft_model_2")):
        with pytest.raises(ModelNotFound):
            await models.coming(principal, name)
    with pytest.raises(ModelNotFound):
        await models.resolve(ACME, "ft_model_2")


def test_key_may_be_limited_to_models_that_are_still_to_be_trained() -> None:
    catalog = ModelCatalog((BASE,))
    assert catalog.grantable_id("standard") == "base"
    assert catalog.grantable_id("ft_model_99") == "ft_model_99"
    with pytest.raises(ModelNotFound):
        catalog.grantable_id("nobody")
