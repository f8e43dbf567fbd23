"""What is given up in a later version: said on the wire and in the log, once to each client.

Only events that have something deprecated are looked at: the others' routes stay as they are.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

import structlog

from ksi_common.envelope import EventEnvelope
from ksi_common.messages import Message, public_name, spec_of
from ksi_daemon.outcomes import Begin, Endpoint, Send
from ksi_daemon.router import Route

log = structlog.get_logger()

MAX_IN_PROCESS: Final = 1000
"""Actors within the process that are remembered."""


class Deprecations:
    """Who was told of what."""

    def __init__(self) -> None:
        self._told: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._in_process: set[tuple[str, str]] = set()

    def watched(self, route: Route) -> Route:
        """Give the route, which tells who uses something of it that is deprecated."""
        aliases = aliases_of(route.message)
        advice = spec_of(route.message).deprecated
        if advice is None and not aliases:
            return route
        begin = None if route.begin is None else self._before(route.begin, advice, aliases)
        return replace(route, handle=self._around(route.handle, advice, aliases), begin=begin)

    def _around(self, handle: Endpoint, advice: str | None, aliases: Mapping[str, str]) -> Endpoint:
        async def handled(envelope: EventEnvelope, send: Send) -> None:
            self._look(envelope, advice, aliases)
            await handle(envelope, send)

        return handled

    def _before(self, begin: Begin, advice: str | None, aliases: Mapping[str, str]) -> Begin:
        def begun(envelope: EventEnvelope) -> object:
            self._look(envelope, advice, aliases)
            return begin(envelope)

        return begun  # type: ignore[return-value]  # what the other one gives

    def _look(self, envelope: EventEnvelope, advice: str | None, aliases: Mapping[str, str]) -> None:
        said = [] if advice is None else [f"{envelope.event} is deprecated: {advice}"]
        said += [
            f"field {old} of {envelope.event} is deprecated: say {new}"
            for old, new in aliases.items()
            if old in envelope.data
        ]
        new = [text for text in said if self._is_first(envelope, text)]
        if new:
            envelope.warnings = new
            for text in new:
                log.warning("event.deprecated", used=envelope.event, warning=text, actor=envelope.actor)

    def _is_first(self, envelope: EventEnvelope, text: str) -> bool:
        if envelope.caller is None:
            key = (envelope.actor, text)
            known = key in self._in_process or len(self._in_process) >= MAX_IN_PROCESS
            if not known:
                self._in_process.add(key)
            return not known
        told = self._told.setdefault(envelope.caller.connection, set())
        if text in told:
            return False
        told.add(text)
        return True


def aliases_of(event: type[Message]) -> Mapping[str, str]:
    """Give the deprecated names of an event's fields, and what they are called now."""
    found = {}
    for name, info in event.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "deprecated_alias" in extra:
            found[str(extra["deprecated_alias"])] = public_name(name, info)
    return found
