"""Answers that are given again to the same request: model, messages and parameters. Off unless it is set.

Answers of providers that keep sessions, or use tools, are not: they did more than to answer.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ksi_common.clock import Clock
from ksi_common.events.completion import Usage
from ksi_completion.providers.cassette import key_of, request_of
from ksi_completion.providers.interface import Answer, Job
from ksi_daemon.plugin import Database, OperationalError, Seconds, Transaction

log = structlog.get_logger()

CACHED: Final = "cached"
"""The field of an answer's ``response`` that says that it was given before."""
SWEEP: Final = 64
"""Answers that are kept between two looks at what is too old, or too much."""

_GET: Final = "SELECT answer FROM completion_cache WHERE key = ? AND stored_us > ? AND stored_us <= ?"
_PUT: Final = (
    "INSERT INTO completion_cache (key, stored_us, answer) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET stored_us = excluded.stored_us, answer = excluded.answer"
)
_EXPIRE: Final = "DELETE FROM completion_cache WHERE stored_us <= ? OR stored_us > ?"
_CROP: Final = (
    "DELETE FROM completion_cache WHERE key IN "
    "(SELECT key FROM completion_cache ORDER BY stored_us DESC LIMIT -1 OFFSET ?)"
)


@cache
def _adapter() -> TypeAdapter[Answer]:
    """Make it at the first use: what is rarely read costs an idle daemon nothing."""
    return TypeAdapter(Answer)


class CacheSettings(BaseModel):
    """The table ``[plugins.completion.cache]``: answers are given again to the same request."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    ttl_s: Seconds = Field(3600.0, gt=0, description="How long an answer is good for.")
    max_answers: int = Field(10_000, ge=1, description="The oldest go first.")
    max_bytes: int = Field(64 * 1024, ge=0, description="Of one answer; a longer one is not kept.")


class ResponseCache:
    """The answers that were kept. ``settings``: None where nothing is."""

    def __init__(self, database: Database, clock: Clock, settings: CacheSettings | None) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._kept = 0

    async def get(self, provider: str, job: Job) -> Answer | None:
        """Give the answer to a request that was made before; it costs nothing, and says that it is cached."""
        if self._settings is None or not _may_be_kept(job):
            return None
        now = self._clock.time_us()
        since = now - round(self._settings.ttl_s * 1e6)
        try:
            rows = await self._database.read(_GET, (_key(provider, job), since, now))
        except OperationalError as error:
            log.warning("cache.not_read", error=error.message)
            return None
        if not rows:
            return None
        try:
            answer = _adapter().validate_json(rows[0]["answer"])
        except ValidationError as error:
            log.warning("cache.not_read", error=f"the answer that was kept is damaged: {error}")
            return None
        return replace(answer, usage=Usage(), response={**answer.response, CACHED: True})

    def put(self, provider: str, job: Job, answer: Answer) -> None:
        """Keep an answer that is whole and short enough. Nobody waits for it, or fails by it."""
        settings = self._settings
        if settings is None or not _may_be_kept(job) or answer.finish_reason != "stop":
            return
        if is_cached(answer.response) or answer.provider_session is not None:
            return
        data = orjson.dumps(_adapter().dump_python(answer, mode="json"))
        if len(data) > settings.max_bytes:
            return
        now = self._clock.time_us()
        self._kept += 1
        sweeps = self._kept % SWEEP == 1

        def put(tx: Transaction) -> None:
            tx.execute(_PUT, (_key(provider, job), now, data))
            if sweeps:
                tx.execute(_EXPIRE, (now - round(settings.ttl_s * 1e6), now))
                tx.execute(_CROP, (settings.max_answers,))

        try:
            stored = self._database.write(put)
        except OperationalError as error:
            log.warning("cache.not_stored", error=error.message)
        else:
            stored.add_done_callback(_note)


def _note(stored: asyncio.Future[None]) -> None:
    if not stored.cancelled() and (error := stored.exception()) is not None:
        log.warning("cache.not_stored", error=str(error))


def is_cached(response: Mapping[str, Any] | None) -> bool:
    """Tell whether an answer was given before, from what its line has."""
    return response is not None and response.get(CACHED) is True


def _may_be_kept(job: Job) -> bool:
    return not job.tools and not job.allowed_tools and job.provider_session is None


def _key(provider: str, job: Job) -> str:
    return key_of({"provider": provider, **request_of(job)})
