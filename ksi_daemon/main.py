"""The process of a daemon: settings, lock, log, loop, signals; ``python -m ksi_daemon`` runs it.

Exit codes: 0 stopped as asked, 1 cannot start or had to end, 4 another daemon has the home,
7 the database was made by a newer version.
"""

import argparse
import asyncio
import errno
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from ksi_common.async_db import SchemaTooNew
from ksi_common.errors import FailedPrecondition, KSIError
from ksi_common.paths import Paths, default_home
from ksi_common.standard_streams import make_usable
from ksi_daemon import notify
from ksi_daemon.bare_structlog import structlog
from ksi_daemon.daemon import RESERVED_FILES, Daemon
from ksi_daemon.database.errors import file_refused, translate
from ksi_daemon.lock import HomeLocked, home_lock
from ksi_daemon.logs import logging_to
from ksi_daemon.presence import Presence
from ksi_daemon.settings import Settings, load_settings

log = structlog.get_logger()

_DISK_REFUSES: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
_LEFT_S: Final = 1.0
"""Time for tasks that are left at the end to let themselves be cancelled."""
_EXIT_S: Final = 2.0
"""Time for the interpreter to end, after the daemon has."""
_SETTLE_S: Final = 1.0
"""After it is ready, so that whoever waits for the first answer does not wait for the collector."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the settings, take the home, serve; give the exit code."""
    make_usable()
    options = _options(arguments)
    paths = Paths(default_home())
    try:
        settings = load_settings(paths)
        if options.safe_mode:
            settings = settings.model_copy(update={"load_plugins": ""})
        if options.check:
            return _check(paths, settings)
        with home_lock(paths) as recovered, logging_to(paths.log, settings.log, echo=options.echo):
            return _serve(paths, settings, recovered=recovered)
    except KSIError as error:
        _say(error)
        return _exit_code(error)


def exit_soon(code: int) -> None:
    """See to it that the process ends: it would wait for ever for a thread that a plugin has left."""

    def leave() -> None:
        main_thread = threading.main_thread()
        left = [each.name for each in threading.enumerate() if not each.daemon and each is not main_thread]
        _print(f"KSI ends in spite of threads that go on: {', '.join(left)}")
        os._exit(code)

    timer = threading.Timer(_EXIT_S, leave)
    timer.daemon = True
    timer.start()


def _serve(paths: Paths, settings: Settings, *, recovered: bool) -> int:
    raise_file_limit()
    daemon = Daemon(paths, settings)
    log.info("daemon.starting", home=str(paths.home), recovered=recovered)
    error: BaseException | None = None
    try:
        _run_to_end(_run(daemon, recovered=recovered))
    except* Exception as group:
        first = _first(group)
        log.exception("daemon.failed", error=str(first), exc_info=not isinstance(first, KSIError))
        error = _of_the_disk(first)
    if error is None:
        log.info("daemon.stopped")
        return 0
    if isinstance(error, KSIError):
        _say(error)
        return _exit_code(error)
    _print(f"KSI had to end: {error!r}; the log has the traceback: {paths.log}")
    return 1


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Do as ``asyncio.run``, but give up on what does not let itself be cancelled: it must not hold us.

    ``sys.exit`` in a callback or a task of a plugin ends the loop; that is a failure, and not how we stop.
    """
    make = loop_factory()
    loop = make() if make is not None else asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(work)
    except (SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and _ctrl_c_raises():
            raise
        raise RuntimeError(f"{error!r} left the loop") from error
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            _, stuck = loop.run_until_complete(asyncio.wait(left, timeout=_LEFT_S))
            log.warning("task.abandoned", stuck=len(stuck), cancelled=len(left) - len(stuck))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def _ctrl_c_raises() -> bool:
    """Tell whether Ctrl-C is a KeyboardInterrupt: it is until we serve, and asks for a stop from then on."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def _run(daemon: Daemon, *, recovered: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_unhandled)
    loop.add_signal_handler(signal.SIGHUP, daemon.reloading.hang_up)

    home = Presence(daemon.paths.lock)

    def ready(daemon: Daemon) -> None:
        daemon.lifecycle.stopping.add_done_callback(lambda _: _let_go(home))
        for number in (signal.SIGTERM, signal.SIGINT):
            grace_s = daemon.settings.limits.drain_s
            loop.add_signal_handler(number, daemon.lifecycle.stop, signal.Signals(number).name, grace_s)
        loop.call_later(_SETTLE_S, settle_memory)
        log.info("daemon.ready", socket=str(daemon.paths.socket), plugins=len(daemon.assembly.loaded))
        notify.ready(f"serving on {daemon.paths.socket}")
        _feed_watchdog(loop)

    await daemon.serve(recovered=recovered, ready=ready)
    notify.stopping("stopped")


def _let_go(home: Presence) -> None:
    """End here and now where our home was taken away: another daemon may have the one in its place.

    Ending as usual takes away by their paths what is then that one's: its socket, its pid file, and, when
    SQLite closes, its write-ahead log with all that it has acknowledged.
    """
    if not home.lasts:
        # No line of the log: that is at a path, too.
        _print("KSI ends: its home was moved or removed; what is stored is where it is now")
        notify.stopping("its home was taken away")
        os._exit(0)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets this user have; connections are files.

    Raises FailedPrecondition where none would be left for a connection.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= RESERVED_FILES:
        raise FailedPrecondition(
            f"it may have {hard} files open, and needs more than {RESERVED_FILES}",
            hint="raise the hard limit: ulimit -Hn",
            reason="too_few_files",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def settle_memory() -> None:
    """Take what lives as long as the daemon out of the collector's sight, and call it more seldom.

    Requests leave no circles of references, so there is little for it to find; with the defaults it took
    a third of the time of a durable request, and pauses of 25 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _feed_watchdog(loop: asyncio.AbstractEventLoop) -> None:
    """Tell whoever watches (systemd, or our supervisor) twice per interval that the loop turns."""
    interval_s = notify.watchdog_interval_s()
    if interval_s is not None:
        notify.watchdog()
        loop.call_later(interval_s, _feed_watchdog, loop)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's loop; None, for asyncio's, where it is not installed."""
    try:
        import uvloop  # noqa: PLC0415 -- optional: not on every platform
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _check(paths: Paths, settings: Settings) -> int:
    daemon = Daemon(paths, settings)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # said below, and once
    daemon.load()
    refused = [plugin for plugin in daemon.catalog.plugins.values() if plugin.status == "refused"]
    for plugin in refused:
        _print(f"plugin {plugin.name} ({plugin.origin}): {plugin.error}")
    return 1 if any(plugin.builtin for plugin in refused) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ksi_daemon", description="Run the KSI daemon.")
    parser.add_argument("--check", action="store_true", help="read settings, import plugins, and exit")
    parser.add_argument("--safe-mode", action="store_true", help="load the built-in plugins only")
    parser.add_argument("--echo", action="store_true", help="write the log to stderr as well")
    return parser.parse_args(arguments)


def _log_unhandled(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    log.error("loop.unhandled", message=context.get("message"), error=repr(error))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _of_the_disk(error: BaseException) -> BaseException:
    """Give the KSIError, with what is to be done, for what a full or failing disk refused."""
    if isinstance(error, OSError) and error.errno in _DISK_REFUSES:
        return file_refused(error)
    return translate(error) if isinstance(error, Exception) else error


def _exit_code(error: KSIError) -> int:
    if isinstance(error, HomeLocked):
        return 4
    return 7 if isinstance(error, SchemaTooNew) else 1


def _say(error: KSIError) -> None:
    hint = f"\n  {error.hint}" if error.hint else ""
    _print(f"KSI cannot run: {error.message}{hint}")


def _print(text: str) -> None:
    sys.stderr.write(f"{text}\n")
