"""Follow one plugin, live: what it answers and what it tells. Where nobody follows, this costs nothing."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import orjson
from pydantic import JsonValue

from ksi_common.clock import Clock, format_time
from ksi_common.envelope import EventEnvelope
from ksi_common.events.system import Traced
from ksi_common.records import record
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.hub import Batch, Hub
from ksi_daemon.middleware.observation import Observer

MAX_WAITING: Final = 1000
"""What a reader that is too slow has waiting; the oldest go first, and are counted."""
MAX_SHOWN: Final = 4096
"""Bytes of an event's data; of more, only the size is shown."""


@record(eq=False)
class Tracing:
    """The service. ``observers``: of the path of an event, which looks at them anew for each."""

    catalog: Catalog
    hub: Hub
    clock: Clock
    observers: list[Observer]

    async def follow(self, plugin: Plugin) -> AsyncGenerator[Traced, None]:
        """Give what the plugin does from now on, in order."""
        tap = _Tap(frozenset(plugin.handled), self.clock)
        self.observers.append(tap.observe)
        channel = self.hub.attach(tap, plugin.told, None) if plugin.told else None
        try:
            yield tap.began()
            while True:
                yield await tap.take()
        finally:
            self.observers.remove(tap.observe)
            if channel is not None:
                self.hub.detach(tap, channel)


class _Tap:
    """Holds what happened until it is taken."""

    def __init__(self, handled: frozenset[str], clock: Clock) -> None:
        self._handled = handled
        self._clock = clock
        self._waiting: deque[dict[str, Any]] = deque()
        self._missed = 0
        self._arrived = asyncio.Event()

    def began(self) -> Traced:
        """Say that it follows."""
        time = format_time(self._clock.time_us())
        return Traced(kind="began", event="plugin:trace", data={}, time=time, correlation_id="")

    def observe(self, envelope: EventEnvelope, took_s: float, code: str) -> None:
        """Take a request that was answered, if the plugin answers such."""
        if envelope.event in self._handled:
            self._put(
                kind="answered",
                event=envelope.event,
                data=_asked(envelope),
                code=code,
                took_ms=round(took_s * 1000, 3),
                time=format_time(self._clock.time_us()),
                correlation_id=envelope.correlation_id,
            )

    def deliver(self, batch: Batch) -> None:
        """Take what was told."""
        for event in batch.events:
            data = orjson.loads(event.data) if len(event.data) <= MAX_SHOWN else _size(len(event.data))
            self._put(
                kind="told",
                event=event.event,
                data=data,
                time=event.time,
                correlation_id=event.correlation_id,
            )

    async def take(self) -> Traced:
        """Give the next one."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        missed, self._missed = self._missed, 0
        return Traced(**self._waiting.popleft(), missed=missed)

    def _put(self, **traced: Any) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(traced)
        self._arrived.set()


def _asked(envelope: EventEnvelope) -> Mapping[str, JsonValue]:
    if envelope.message is None:
        data = dict(envelope.data)
        return data if len(str(data)) <= MAX_SHOWN else _size(len(str(data)))
    rendered = envelope.message.__pydantic_serializer__.to_json(envelope.message, by_alias=True)
    return orjson.loads(rendered) if len(rendered) <= MAX_SHOWN else _size(len(rendered))


def _size(count: int) -> Mapping[str, JsonValue]:
    return {"…": f"{count} bytes"}
