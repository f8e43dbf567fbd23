"""Handlers in other processes: clients that serve events."""

from ksi_daemon.remote.registry import Remotes

__all__ = ["Remotes"]
