"""How the daemon fares: looked at no more than once a second, however often it is asked."""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from pydantic import JsonValue

from ksi_common.clock import Clock
from ksi_common.events.system import Check, Checks, Healthy, Status
from ksi_daemon.catalog import Catalog
from ksi_daemon.database import Database
from ksi_daemon.lifecycle import Lifecycle
from ksi_daemon.projections import Projections
from ksi_daemon.settings import Settings
from ksi_daemon.subscriptions import Subscriptions
from ksi_daemon.supervisor import attempt

Watch = Callable[[], Check]
"""Look at a part; must not wait."""

MAX_SAID: Final = 500
"""Characters of what a plugin's check fails with."""
FRESH_S: Final = 1.0
CHECK_S: Final = 2.0
"""A part that does not answer within this is unhealthy."""
_RANK: Final[dict[Status, int]] = {"healthy": 0, "degraded": 1, "unhealthy": 2}


class HealthChecks(Protocol):
    """What plugins add to the daemon's health."""

    def watch_providers(self, watch: Watch) -> None:
        """Ask ``watch`` for the health of ``providers``, once a second at most."""
        ...

    def watch(self, plugin: str, watch: Watch) -> None:
        """Ask ``watch`` for the health of a plugin, which is part of that of ``plugins``; likewise."""
        ...


class Health:
    """Check the parts and keep the result for a second."""

    def __init__(
        self,
        database: Database,
        subscriptions: Subscriptions,
        catalog: Catalog,
        projections: Projections,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._subscriptions = subscriptions
        self._catalog = catalog
        self._projections = projections
        self._settings = settings
        self._clock = clock
        self._checked = float("-inf")
        self._checks: Checks | None = None
        self._turn = asyncio.Lock()
        self._summarised: tuple[Checks, float, int] | None = None
        self._summary: Healthy | None = None
        self._watch_providers: Watch = _no_providers
        self._watches: dict[str, Watch] = {}

    def watch_providers(self, watch: Watch) -> None:
        """Ask ``watch`` for the health of ``providers``."""
        self._watch_providers = watch

    def watch(self, plugin: str, watch: Watch) -> None:
        """Ask ``watch`` for the health of a plugin."""
        self._watches[plugin] = watch

    @property
    def fresh(self) -> Checks | None:
        """Give every part's health where it was looked at within the last second."""
        return self._checks if self._clock.monotonic() - self._checked <= FRESH_S else None

    async def checks(self) -> Checks:
        """Give every part's health, at most a second old."""
        async with self._turn:
            checks = self.fresh
            if checks is None:
                checks = self._checks = await self._check()
                self._checked = self._clock.monotonic()
        return checks

    def summary(self, checks: Checks, lifecycle: Lifecycle, uptime_s: float, connections: int) -> Healthy:
        """Give the whole answer: the last one again where nothing in it has changed."""
        key = (checks, uptime_s, connections)
        if self._summary is None or self._summarised != key:
            self._summarised = key
            self._summary = Healthy(
                status=_worst(checks),
                version=lifecycle.version,
                pid=lifecycle.pid,
                uptime_s=uptime_s,
                active_connections=connections,
                checks=checks,
            )
        return self._summary

    async def _check(self) -> Checks:
        return Checks(
            database=await self._check_database(),
            disk_space=await self._check_disk(),
            message_queue=self._check_queue(),
            plugins=self._check_plugins(),
            providers=self._watch_providers(),
        )

    async def _check_database(self) -> Check:
        start = self._clock.monotonic()
        try:
            async with asyncio.timeout(CHECK_S):
                await self._database.read("SELECT 1")
        except TimeoutError:
            return Check(status="unhealthy", detail={"error": f"no answer within {CHECK_S:g} s"})
        if not self._database.in_place:
            return Check(status="unhealthy", detail={"error": "its file was moved, removed or replaced"})
        took_ms = round((self._clock.monotonic() - start) * 1000, 3)
        head = self._subscriptions.hub.head
        lost = self._database.facts.lost_tail
        if lost is None or lost.acknowledged:
            return Check(status="healthy", detail={"read_ms": took_ms, "head": head})
        missing = {"first_missing": lost.first_missing, "missing": lost.missing}
        return Check(status="degraded", detail={"read_ms": took_ms, "head": head, "tail_lost": dict(missing)})

    async def _check_disk(self) -> Check:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CHECK_S):
                disk = await loop.run_in_executor(None, os.statvfs, self._database.path)
        except (TimeoutError, OSError) as error:
            return Check(status="unhealthy", detail={"error": str(error) or "the disk does not answer"})
        free = disk.f_bavail * disk.f_frsize
        enough = free >= self._settings.limits.disk_free_bytes
        return Check(status="healthy" if enough else "degraded", detail={"free_bytes": free})

    def _check_queue(self) -> Check:
        waiting = self._database.statistics.waiting
        detail = {"waiting": waiting, "subscriptions": self._subscriptions.hub.subscriptions}
        return Check(status="healthy" if waiting < 10_000 else "degraded", detail=dict(detail))

    def _check_plugins(self) -> Check:
        found = self._catalog.plugins.values()
        bad = [plugin.name for plugin in found if plugin.status not in {"loaded", "disabled"}]
        loaded = sum(plugin.status == "loaded" for plugin in found)
        stopped = [each.declaration.name for each in self._projections.all if each.status == "stopped"]
        watched = {name: _looked(watch) for name, watch in self._watches.items() if name not in bad}
        own: Status = "degraded" if bad or stopped else "healthy"
        return Check(
            status=max((own, *(check.status for check in watched.values())), key=_RANK.__getitem__),
            detail={
                "loaded": loaded,
                "not_loaded": list(bad),
                **({"stopped_projections": list(stopped)} if stopped else {}),
                **({"watched": _dumped(watched)} if watched else {}),
            },
        )


def _no_providers() -> Check:
    return Check(status="healthy", detail={"configured": 0})


def _looked(watch: Watch) -> Check:
    """Look at a plugin: its function is foreign, and may raise, or give what is no check."""
    found: object = attempt(watch)
    if isinstance(found, Check):
        return found
    return Check(status="unhealthy", detail={"error": repr(found)[:MAX_SAID]})


def _dumped(watched: Mapping[str, Check]) -> dict[str, JsonValue]:
    return {name: check.model_dump() for name, check in watched.items()}


def _worst(checks: Checks) -> Status:
    parts = (checks.database, checks.disk_space, checks.message_queue, checks.plugins, checks.providers)
    return max((part.status for part in parts), key=_RANK.__getitem__)
