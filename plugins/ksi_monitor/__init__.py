"""``monitor:*`` and ``correlation:*``: the log under the names that users of the first KSI know."""

from ksi_monitor.handlers import (
    get_correlation_chain,
    get_events,
    get_session_events,
    get_stats,
    ksi_services,
    subscribe,
    unsubscribe,
)
from ksi_monitor.tracing import chain, current, stats, trace, tree

__all__ = [
    "chain",
    "current",
    "get_correlation_chain",
    "get_events",
    "get_session_events",
    "get_stats",
    "ksi_services",
    "stats",
    "subscribe",
    "trace",
    "tree",
    "unsubscribe",
]
