"""State that is made of the log, and can always be made again.

An author declares how an event changes a document, or a table; the rest is here: catching up in slices,
keeping state and checkpoint in one commit, rebuilding beside what readers see, and the swap.
"""

from ksi_daemon.projections.aggregates import Aggregates, Loaded
from ksi_daemon.projections.declaration import (
    Declaration,
    ProjectionError,
    Rows,
    projection,
    table_projection,
)
from ksi_daemon.projections.follower import Projection
from ksi_daemon.projections.rebuilders import Tables, rebuilder
from ksi_daemon.projections.service import Projections

__all__ = [
    "Aggregates",
    "Declaration",
    "Loaded",
    "Projection",
    "ProjectionError",
    "Projections",
    "Rows",
    "Tables",
    "projection",
    "rebuilder",
    "table_projection",
]
