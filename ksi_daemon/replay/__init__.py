"""The log, gone through again: into a sandbox, which is compared with what is live, or into a subscriber."""

from ksi_daemon.replay.service import Replays
from ksi_daemon.replay.service import Step as ReplayStep

__all__ = ["ReplayStep", "Replays"]
