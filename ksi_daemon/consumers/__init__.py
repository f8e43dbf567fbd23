"""Named consumers: cursors that the daemon keeps, groups that share one, and what was not done yet."""

from ksi_daemon.consumers.seats import Refusal
from ksi_daemon.consumers.service import Consumers, ConsumerState
from ksi_daemon.consumers.wishes import Wish

__all__ = ["ConsumerState", "Consumers", "Refusal", "Wish"]
