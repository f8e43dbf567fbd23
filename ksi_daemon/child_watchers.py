"""Who wants to know of child processes: told of each when it starts, and when nothing of it is left."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from ksi_common.records import record
from ksi_daemon import runner
from ksi_daemon.runner_link import Exit, RunnerLink


@record
class Child:
    """A process under a runner. ``started``: in clock ticks since the boot that ``boot_id`` names.

    Pid, start and boot together are of one process only, ever.
    """

    pid: int
    started: int
    boot_id: str
    purpose: str


class ChildWatcher(Protocol):
    """Hears of children. What it raises ends the daemon: it is to see to its own trouble."""

    async def child_started(self, child: Child) -> None:
        """Hear that one runs."""
        ...

    async def child_ended(self, child: Child, how: Exit, pids_gone: Sequence[int]) -> None:
        """Hear that nothing of it is left; ``pids_gone``: what was killed with it."""
        ...


async def watch(link: RunnerLink, purpose: str, watchers: Sequence[ChildWatcher]) -> None:
    """Tell of one child, from its start to its end; of one that never started nothing."""
    await link.started.wait()
    if not link.pid:
        return
    # One that is gone already has no start to be read; nor has one where no file can be opened to look at it.
    try:
        stat, boot_id = runner.read_stat(link.pid), _boot_id()
    except OSError:
        stat, boot_id = None, ""
    child = Child(link.pid, stat.started if stat else 0, boot_id, purpose)
    for watcher in watchers:
        await watcher.child_started(child)
    await link.ended.wait()
    for watcher in watchers:
        await watcher.child_ended(child, link.exit, link.pids_gone)


@cache
def _boot_id() -> str:
    return runner.boot_id()
