"""Retention, as clients have it."""

from dataclasses import asdict

from ksi_common.events.event import GetRetention, Removal, RetentionRule, RetentionState, Sweep
from ksi_daemon.plugin import EventLog, Hub, Retention, format_time, handler


@handler
async def sweep(request: Sweep, retention: Retention) -> Removal:
    """Sweep, slice by slice."""
    return Removal(**asdict(await retention.sweep(trust_live=request.trust_live)))


@handler
async def retention(_: GetRetention, retention: Retention, log: EventLog, hub: Hub) -> RetentionState:
    """Tell the rules, and how far they have come."""
    settings = retention.settings
    return RetentionState(
        rules=[RetentionRule(**rule.model_dump()) for rule in retention.rules],
        stubs_max_age_days=settings.stubs_max_age_days,
        max_stubs=settings.max_stubs,
        every_s=settings.every_s,
        horizon=log.horizon,
        head=hub.head,
        swept=format_time(retention.swept_us) if retention.swept_us is not None else None,
        last=Removal(**asdict(retention.last)),
    )
