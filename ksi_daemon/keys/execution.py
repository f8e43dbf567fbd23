"""The one execution under a key: what joins its unit of work, and what it came to."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ksi_common.clock import Clock
from ksi_common.envelope import EventEnvelope
from ksi_common.errors import Cancelled, FailedPrecondition, KSIError
from ksi_common.frames import error_text
from ksi_daemon.database import Database, Transaction
from ksi_daemon.exchange import encode
from ksi_daemon.keys import rows
from ksi_daemon.keys.rows import KeyName
from ksi_daemon.outcomes import Failed, Outcome, Replied, Send, is_reply

T = TypeVar("T")


class KeyTaken(FailedPrecondition):
    """The key has done its work in another unit; this one is not to do it again."""


class Execution:
    """A request with a key, while it runs. ``again``: the effect is there, and may be had twice."""

    __slots__ = (
        "_again",
        "_clock",
        "_committed",
        "_database",
        "_envelope",
        "_reply",
        "digest",
        "ended",
        "name",
        "outcome",
        "taken",
    )

    def __init__(
        self,
        name: KeyName,
        digest: bytes,
        envelope: EventEnvelope,
        database: Database,
        clock: Clock,
        *,
        again: bool,
    ) -> None:
        self.name = name
        self.digest = digest
        self.ended: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        """What it came to; None: it was cancelled, or another's unit was before it."""
        self.outcome: Outcome | None = None
        self.taken = False
        """Another's unit has done the work of this key."""
        self._again = again
        self._envelope = envelope
        self._database = database
        self._clock = clock
        self._committed = False
        self._reply: object = None
        """What was committed as the answer."""

    def around(self, unit: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        """Have the key commit with ``unit``, and the answer too where that is what the unit gives."""
        return self._joined(unit, self._is_reply)

    def answering(self, reply: object) -> Callable[[Transaction], object]:
        """Give the unit of a request that wrote nothing: its key, and its answer."""
        return self._joined(lambda _: reply, lambda value: value is not None)

    async def take(self, outcome: Outcome, send: Send) -> None:
        """Take what the handler gives, and pass it on once the key is on disk."""
        if self.taken:
            return
        if isinstance(outcome, Replied) and not self._committed:
            await self._database.write_apart(self.answering(outcome.value))
        self.outcome = outcome
        await send(outcome)

    @property
    def answer_to_keep(self) -> Callable[[Transaction], None] | None:
        """Give the unit that writes the answer; None where it is on disk already, or is not for ever."""
        outcome = self.outcome
        if not self._committed:
            return None
        if isinstance(outcome, Replied) and outcome.value is not self._reply:
            reply = _text(outcome.value)
            return lambda tx: rows.answer_in(tx, self.name, reply=reply)
        if isinstance(outcome, Failed) and _is_definite(outcome.error):
            error = error_text(outcome.error).decode()
            return lambda tx: rows.answer_in(tx, self.name, error=error)
        return None

    def _joined(
        self, unit: Callable[[Transaction], T], is_reply: Callable[[object], bool]
    ) -> Callable[[Transaction], T]:
        def joined(tx: Transaction) -> T:
            known = rows.find_in(tx, self.name)
            self.taken = known is not None and not self._again and known.event_id != self._envelope.event_id
            if self.taken:
                raise KeyTaken(f"key {self.name.key!r} has done its work", reason="key_taken")
            value = unit(tx)
            reply = _text(value) if is_reply(value) else None
            if known is None:
                now_us = self._clock.time_us()
                rows.add_in(tx, self.name, self.digest, self._envelope.event_id, now_us, reply)
            elif reply is not None:
                rows.answer_in(tx, self.name, reply=reply)
            tx.on_commit(lambda: self._commit(None if reply is None else value))
            return value

        return joined

    def _commit(self, reply: object) -> None:
        self._committed = True
        self._reply = reply

    def _is_reply(self, value: object) -> bool:
        spec = self._envelope.spec
        return spec is not None and spec.reply is not None and is_reply(value, spec.reply)


def _is_definite(error: KSIError) -> bool:
    return not error.retryable and error.code != Cancelled.code


def _text(reply: object) -> str:
    return encode(reply).decode()  # type: ignore[arg-type]  # what is no reply is refused by it
