"""The integrity of the log, as clients have it."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from ksi_common.events.event import AcknowledgeLoss, Damaged, LossAcknowledged, Verified, Verify
from ksi_daemon.plugin import Damage, Database, Transaction, Verifier, handler
from ksi_daemon.plugin import Verified as Found


@handler
async def verify(request: Verify, verifier: Verifier) -> AsyncIterator[Verified]:
    """Tell each damage with the page that it was found in."""
    found: Found | None = None
    async for found in verifier.verify(request.from_seq, request.to_seq, deep=request.deep):
        yield _verified(found)
    yield (
        Verified(position=0, until=0, checked=0, removed=0, damaged=[], done=True)
        if found is None
        else _verified(replace(found, damaged=[], references=[]), done=True)
    )


@handler
async def acknowledge_loss(_: AcknowledgeLoss, database: Database) -> LossAcknowledged:
    """Keep what is known of the loss, and that somebody knows it."""
    lost = database.facts.lost_tail
    if lost is None or lost.acknowledged:
        return LossAcknowledged(first_missing=None, missing=None)

    def acknowledge(tx: Transaction) -> None:
        database.keep_lost_tail(tx, replace(lost, acknowledged=True))

    await database.write(acknowledge)
    return LossAcknowledged(first_missing=lost.first_missing, missing=lost.missing)


def damages(found: Iterable[Damage]) -> list[Damaged]:
    """Say what is damaged in the words of the wire."""
    return [
        Damaged(
            reason=damage.reason,
            detail=damage.detail,
            seq=damage.seq or None,
            event_id=damage.event_id,
            count=damage.count,
        )
        for damage in found
    ]


def _verified(found: Found, *, done: bool = False) -> Verified:
    references = [
        Damaged(
            reason=damaged.reason,
            detail=damaged.detail,
            owner=damaged.referred.owner,
            name=damaged.referred.name,
        )
        for damaged in found.references
    ]
    return Verified(
        position=found.position,
        until=found.until,
        checked=found.checked,
        removed=found.removed,
        damaged=damages(found.damaged) + references,
        done=done,
    )
