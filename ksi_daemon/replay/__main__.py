"""Run a sandbox: ``python -m ksi_daemon.replay``, as `Sandboxes` starts it; an Order comes on stdin.

It makes a home of the log of another one, holds it against that, and comes to life in it as a daemon whose
effects are off (unless only a snapshot is wanted). It says how far it is, and in the end what came of it, as
JSON lines on stdout. It ends when it has said so; or, where it is to be kept, when stdin ends.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import orjson

from ksi_common.errors import KSIError
from ksi_common.paths import Paths
from ksi_daemon.daemon import Daemon
from ksi_daemon.database.apart import tables_made_by
from ksi_daemon.lock import home_lock
from ksi_daemon.logs import logging_to
from ksi_daemon.main import loop_factory, raise_file_limit
from ksi_daemon.own_output import Say, own_output
from ksi_daemon.projections.rebuilders import declared_by
from ksi_daemon.replay.making import Made, Plan, make
from ksi_daemon.replay.rebuilding import Rebuilding
from ksi_daemon.replay.sandboxes import Order
from ksi_daemon.settings import Settings


def main() -> int:
    """Do as ordered; give the exit code: 0 done, 1 refused."""
    order = Order(**orjson.loads(sys.stdin.buffer.readline()))
    sandbox = Paths(order.sandbox_path)
    settings = Settings(**order.settings)
    raise_file_limit()
    with own_output() as say:
        try:
            with home_lock(sandbox), logging_to(sandbox.log, settings.log):
                _work(order, Daemon(sandbox, settings, sandbox=True), say)
        except KSIError as error:
            say({"error": error.to_wire()})
            return 1
    return 0


def _work(order: Order, daemon: Daemon, say: Say) -> None:
    daemon.load()
    plan = _plan(order, daemon)
    made = make(plan, partial(_progress, say))
    result = _result(plan, made)
    if plan.keep:
        say(result)
    else:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(daemon, partial(say, result), keep=order.keep_running))


def _plan(order: Order, daemon: Daemon) -> Plan:
    loaded = daemon.assembly.loaded
    rebuilders, upcast = declared_by(loaded)
    return Plan(
        Paths(order.live_path),
        daemon.paths,
        {plugin.name: daemon.relay.migrations(plugin.name) for plugin in loaded},
        rebuilders,
        upcast,
        order.snapshot_from,
        order.keep_snapshot,
        order.trust_live,
    )


def _result(plan: Plan, made: Made) -> Mapping[str, Any]:
    compared = {found.table for found in made.compared}
    left_out = [
        (plugin, table)
        for plugin, scripts in plan.migrations.items()
        for table in sorted(tables_made_by(scripts) - compared)
    ]
    return {**asdict(made), "left_out": left_out, "socket": str(plan.sandbox.socket), "done": True}


async def _serve(daemon: Daemon, made: Callable[[], None], *, keep: bool) -> None:
    """Call ``made``, then answer until nobody asks any more."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin.fileno())
        daemon.lifecycle.stop("sandbox_done", 0.0)

    def ready(_: Daemon) -> None:
        made()
        if keep:
            loop.add_reader(sys.stdin.fileno(), stop)  # nothing comes but its end
        else:
            daemon.lifecycle.stop("sandbox_done", 0.0)

    await daemon.serve(ready=ready)


def _progress(say: Say, work: Rebuilding, end: int) -> None:
    say({"applied": work.applied, "position": work.position, "end": end, "missing": work.missing})


if __name__ == "__main__":
    sys.exit(main())
