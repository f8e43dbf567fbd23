"""What a stream comes to: its events, folded, from the last snapshot on."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Generic, TypeVar

from ksi_common.envelope import StoredEvent
from ksi_common.errors import DataLoss, OperationalError
from ksi_common.messages import Message
from ksi_common.records import record
from ksi_daemon.database import Database, Transaction
from ksi_daemon.eventlog import Damage, EventLog, RemovedEvent
from ksi_daemon.projections.declaration import Declaration, fold_of
from ksi_daemon.threads import Threads

S = TypeVar("S", bound=Message)
E = TypeVar("E")

SNAPSHOT_EVERY: Final = 100
"""Events that are folded before another snapshot is worth its commit."""
_PAGE: Final = 1000


@record
class Loaded(Generic[S]):
    """The state of a stream, and its version: append with that as the one expected."""

    state: S
    version: int


class Aggregates:
    """Load streams. Whoever changes one appends, with the version loaded as the one expected."""

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database = database
        self._log = log
        self._threads = Threads(1)

    async def load(
        self,
        apply: Callable[[S, E], S],
        stream: str,
        *,
        version: int = 1,
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> Loaded[S]:
        """Fold the events of ``stream`` that ``apply`` takes, as ``projection`` says, into its state.

        ``version``: of ``apply``; snapshots of another one are not used. Raises DataLoss where the stream's
        beginning is gone and no snapshot has it, or an event is damaged.
        """
        declared = fold_of(apply)
        state, at = await self._snapshot(declared, stream, version)
        gone = await self._log.compacted(stream)
        if gone > at:
            raise DataLoss(
                f"stream {stream} has lost its versions up to {gone}", reason="history_gone", version=gone
            )
        first = at
        while True:
            events, more = await self._read(stream, at)
            state = await self._threads.run(partial(self._fold, declared, state, events))
            at = (events[-1].version or at) if events else at
            if not more:
                break
        if at - first >= snapshot_every:
            with suppress(OperationalError):  # the state is right all the same; a later load tries again
                await self._keep(declared.name, stream, version, at, state)
        return Loaded(state, at)  # type: ignore[arg-type]  # it is what apply takes and gives

    async def _read(self, stream: str, after: int) -> tuple[Sequence[StoredEvent], bool]:
        damaged: list[Damage] = []
        page = await self._log.stream(
            stream, from_version=after + 1, backwards=False, limit=_PAGE, damaged=damaged
        )
        if damaged:
            first = damaged[0]
            raise DataLoss(f"stream {stream}: {first.detail}", reason=first.reason, seq=first.seq or None)
        if any(isinstance(event, RemovedEvent) for event in page.events):
            raise DataLoss(f"retention has removed data of stream {stream}", reason="history_gone")
        return page.events, page.next_version is not None

    def _fold(self, declared: Declaration, state: Message, events: Sequence[StoredEvent]) -> Message:
        for event in events:
            if not declared.classes or event.event in declared.classes:
                state = declared.apply(state, declared.read(event, self._log.cursor(event.position)))
        return state

    async def _snapshot(self, declared: Declaration, stream: str, version: int) -> tuple[Message, int]:
        rows = await self._database.read(
            "SELECT state, version FROM snapshots WHERE aggregate = ? AND stream = ? AND code = ?",
            (declared.name, stream, version),
        )
        document = declared.document
        assert document is not None
        if not rows:
            return document(), 0
        return document.__pydantic_validator__.validate_json(rows[0]["state"]), rows[0]["version"]

    async def _keep(self, name: str, stream: str, code: int, version: int, state: Message) -> None:
        text = state.__pydantic_serializer__.to_json(state).decode()

        def unit(tx: Transaction) -> None:
            tx.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET code = excluded.code, version = excluded.version, state = excluded.state "
                "WHERE excluded.code != code OR excluded.version > version",
                (name, stream, code, version, text),
            )

        await self._database.write_apart(unit)
