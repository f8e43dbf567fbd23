"""Services are opened in order of need and closed in reverse; what cannot be had says why."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from ksi_daemon.services import Service, ServiceError, Services, needs_of


class Disk:
    """Needs nothing."""


class Store:
    """Needs a disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk


class Cache:
    """Needs a store."""

    def __init__(self, store: Store) -> None:
        self.store = store


@pytest.fixture
def passed() -> list[str]:
    """Give what was opened and closed, in order."""
    return []


@pytest.fixture
def disk(passed: list[str]) -> Service[Disk]:
    @asynccontextmanager
    async def open_disk() -> AsyncIterator[Disk]:
        passed.append("open disk")
        yield Disk()
        passed.append("close disk")

    return Service(Disk, open_disk)


@pytest.fixture
def store(passed: list[str]) -> Service[Store]:
    @asynccontextmanager
    async def open_store(disk: Disk) -> AsyncIterator[Store]:
        passed.append("open store")
        yield Store(disk)
        passed.append("close store")

    return Service(Store, open_store)


@pytest.fixture
def cache(passed: list[str]) -> Service[Cache]:
    @asynccontextmanager
    async def open_cache(store: Store) -> AsyncIterator[Cache]:
        passed.append("open cache")
        yield Cache(store)
        passed.append("close cache")

    return Service(Cache, open_cache)


def failing(interface: type, error: BaseException) -> Service[Any]:
    @asynccontextmanager
    async def fail() -> AsyncIterator[object]:
        if error:
            raise error
        yield object()

    return Service(interface, fail)


def reasons(failed: Any) -> dict[str, str]:
    return {plugin: str(error) for plugin, error in failed.items()}


async def test_what_was_offered_is_given() -> None:
    services, disk = Services(), Disk()
    services.offer(Disk, disk)
    assert services.get(Disk) is disk


async def test_what_nobody_offers_is_refused_with_what_there_is() -> None:
    services = Services()
    services.offer(Disk, Disk())
    services.offer(Cache, Cache(Store(Disk())))
    with pytest.raises(ServiceError, match="no plugin offers the service Store; there are Cache, Disk"):
        services.get(Store)


async def test_what_is_no_type_is_refused_by_its_text() -> None:
    with pytest.raises(ServiceError, match=r"no plugin offers the service list\[int\] \| None"):
        Services().get(list[int] | None)  # type: ignore[arg-type]


async def test_a_second_offer_of_a_service_is_refused_with_who_has_it() -> None:
    services = Services()
    services.offer(Disk, Disk(), plugin="ssd")
    with pytest.raises(ServiceError, match="service Disk is offered by plugin ssd already"):
        services.offer(Disk, Disk(), plugin="tape")


async def test_an_offer_of_what_is_taken_harms_nobody_who_needs_it(
    disk: Service[Disk], store: Service[Store]
) -> None:
    async with Services() as services:
        services.offer(Disk, Disk())
        failed = await services.open({"good": [store], "bad": [disk]})
        assert list(failed) == ["bad"]
        assert services.get(Store).disk is services.get(Disk)


async def test_it_is_known_what_is_offered_and_by_whom() -> None:
    services = Services()
    services.offer(Disk, Disk(), plugin="ssd")
    assert services.knows(Disk)
    assert not services.knows(Store)
    assert services.origins == {Disk: "ssd"}


async def test_what_is_needed_is_opened_first(
    passed: list[str], disk: Service[Disk], store: Service[Store], cache: Service[Cache]
) -> None:
    async with Services() as services:
        failed = await services.open({"a": [cache], "b": [store], "c": [disk]})
        assert failed == {}
        assert passed == ["open disk", "open store", "open cache"]


async def test_services_are_closed_in_reverse(
    passed: list[str], disk: Service[Disk], store: Service[Store], cache: Service[Cache]
) -> None:
    async with Services() as services:
        await services.open({"a": [store, cache, disk]})
        passed.clear()
    assert passed == ["close cache", "close store", "close disk"]


async def test_a_factory_is_given_the_services_that_it_names_by_type(
    disk: Service[Disk], store: Service[Store]
) -> None:
    async with Services() as services:
        await services.open({"a": [store], "b": [disk]})
        assert services.get(Store).disk is services.get(Disk)


async def test_a_factory_may_need_what_the_core_offers(store: Service[Store]) -> None:
    async with Services() as services:
        services.offer(Disk, core := Disk())
        await services.open({"a": [store]})
        assert services.get(Store).disk is core


async def test_a_service_is_the_plugins_that_offers_it_though_another_needed_it_first(
    disk: Service[Disk], store: Service[Store]
) -> None:
    async with Services() as services:
        assert await services.open({"a": [store], "b": [disk]}) == {}
        assert services.origins == {Store: "a", Disk: "b"}


async def test_a_cycle_is_refused_and_shown() -> None:
    @asynccontextmanager
    async def open_store(cache: Cache) -> AsyncIterator[Store]:
        yield Store(Disk())

    @asynccontextmanager
    async def open_cache(store: Store) -> AsyncIterator[Cache]:
        yield Cache(store)

    async with Services() as services:
        failed = await services.open({"a": [Service(Store, open_store)], "b": [Service(Cache, open_cache)]})
    assert reasons(failed) == {
        "a": "services need each other: Store -> Cache -> Store",
        "b": "services need each other: Cache -> Store -> Cache",
    }


async def test_a_service_that_needs_itself_is_refused() -> None:
    @asynccontextmanager
    async def open_store(store: Store) -> AsyncIterator[Store]:
        yield store

    async with Services() as services:
        failed = await services.open({"a": [Service(Store, open_store)]})
    assert reasons(failed) == {"a": "services need each other: Store -> Store"}


async def test_who_only_needs_a_cycle_is_told_of_the_cycle_alone(cache: Service[Cache]) -> None:
    @asynccontextmanager
    async def open_store(store: Store) -> AsyncIterator[Store]:
        yield store

    async with Services() as services:
        failed = await services.open({"a": [cache], "b": [Service(Store, open_store)]})
    assert reasons(failed)["a"] == "services need each other: Store -> Store"


async def test_a_service_that_the_core_has_is_refused(disk: Service[Disk]) -> None:
    async with Services() as services:
        services.offer(Disk, Disk())
        failed = await services.open({"a": [disk]})
    assert reasons(failed) == {"a": "service Disk is offered by plugin core already"}


async def test_a_need_that_nobody_meets_refuses_the_plugin(store: Service[Store]) -> None:
    async with Services() as services:
        failed = await services.open({"a": [store]})
    assert reasons(failed) == {"a": "no plugin offers the service Disk; there are "}


@pytest.mark.parametrize("error", [OSError("no disk"), SystemExit(3)])
async def test_a_failing_factory_refuses_its_plugin_only(error: BaseException, cache: Service[Cache]) -> None:
    async with Services() as services:
        services.offer(Store, Store(Disk()))
        failed = await services.open({"a": [failing(Disk, error)], "b": [cache]})
        assert failed == {"a": error}
        assert services.knows(Cache)


async def test_a_plugin_that_needs_a_failing_service_is_refused_too(store: Service[Store]) -> None:
    async with Services() as services:
        failed = await services.open({"a": [store], "b": [failing(Disk, OSError("no disk"))]})
    assert reasons(failed) == {"a": "no disk", "b": "no disk"}


async def test_what_a_refused_plugin_had_opened_is_closed_at_the_end(
    passed: list[str], disk: Service[Disk]
) -> None:
    async with Services() as services:
        await services.open({"a": [disk, failing(Store, OSError("no disk"))]})
    assert passed == ["open disk", "close disk"]


async def test_a_factory_whose_parameter_has_no_type_is_refused() -> None:
    def untyped(disk) -> AbstractAsyncContextManager[Store]:  # type: ignore[no-untyped-def]
        raise NotImplementedError

    async with Services() as services:
        failed = await services.open({"a": [Service(Store, untyped)]})
    assert isinstance(failed["a"], TypeError)
    assert str(failed["a"]).endswith("untyped has no type")


def test_needs_are_the_parameters_and_their_types() -> None:
    def make(disk: Disk, store: "Store") -> Cache:
        return Cache(store)

    assert needs_of(make) == {"disk": Disk, "store": Store}


def test_what_takes_nothing_needs_nothing() -> None:
    make: Callable[[], None] = lambda: None  # noqa: E731 -- a function without a name
    assert needs_of(make) == {}
