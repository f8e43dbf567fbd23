"""The log, gone through again: into a sandbox, which is compared with what is live, or into a subscriber."""

from ksi_daemon.replay.service import Replays

__all__ = ["Replays"]
