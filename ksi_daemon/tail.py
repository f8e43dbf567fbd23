"""A log that has lost its tail: said in the daemon's log, and told once."""

from dataclasses import replace

import structlog

from ksi_common.events.system import TailLost
from ksi_daemon.database import Database, Transaction

log = structlog.get_logger()


async def tell_lost_tail(database: Database) -> None:
    """Say what is missing since the start before this one, if anything is."""
    lost = database.facts.lost_tail
    if lost is None or lost.told:
        return
    log.error("log.tail_lost", first_missing=lost.first_missing, missing=lost.missing)
    told = TailLost(first_missing=lost.first_missing, missing=lost.missing, former_log_id=lost.former_log_id)

    def tell(tx: Transaction) -> None:
        tx.tell(told)
        database.keep_lost_tail(tx, replace(lost, told=True))

    await database.write_apart(tell)
