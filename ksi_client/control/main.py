"""The command line of ``daemon_control.py``."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from ksi_client.control.logs import LEVELS, Line, Wanted, follow, parse_since, read, render
from ksi_client.control.settings import reload_settings
from ksi_client.control.starting import START_S, restart, start, start_here
from ksi_client.control.status import health, status
from ksi_client.control.stopping import stop
from ksi_client.control.watching import keep_reloading
from ksi_client.control.wording import Exit, Outcome, Tell, complain, tell_nobody, tell_people
from ksi_common.errors import KSIError, PermissionDenied
from ksi_common.paths import Paths, default_home
from ksi_common.standard_streams import make_usable

LINES: Final = 50
LONGEST_S: Final = 86_400.0
"""To wait for a start; what select() takes is not endless."""
EPILOG: Final = """\
examples:
  PROGRAM start
  PROGRAM status --json
  PROGRAM logs -f --level warning
  PROGRAM stop

exit codes: 0 ok, 1 failed, 2 usage, 3 not running, 4 not permitted or not known, 7 data of a newer KSI
"""


def main(arguments: Sequence[str] | None = None, *, program: str = "daemon_control.py") -> int:
    """Run one command and give its exit code; ``program``: what help calls it."""
    make_usable()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(program).parse_args(words)
    except _WrongUsage as wrong:
        return _refuse(wrong, words)
    os.umask(0o077)  # what is made here and by the daemon is its owner's alone
    try:
        return _run(options)
    except KSIError as error:
        return _finish(options, _failure(options, error))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader, head perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as error:  # a file that may not be opened, a disk that is full
        complain(
            f"daemon_control: {error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        )
        return Exit.FAILED


class _WrongUsage(Exception):
    """A command line that makes no sense. ``usage``: how it would."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, for a program may want it as JSON."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise _WrongUsage(message, f"{self.format_usage()}{self.prog}: error: ")


def _refuse(wrong: _WrongUsage, words: Sequence[str]) -> int:
    if "--json" in words:
        error = {"code": "INVALID_ARGUMENT", "message": wrong.message, "details": {"reason": "usage"}}
        tell_people(json.dumps({"error": error}) + "\n")
    else:
        complain(f"{wrong.usage}{wrong.message}")
    return Exit.USAGE


def _run(options: argparse.Namespace) -> int:
    home = getattr(options, "home", None)
    paths = Paths(Path(os.path.abspath(home)) if home else default_home())  # noqa: PTH100 -- resolves no links
    if options.command == "logs":
        return _logs(paths, options)
    if getattr(options, "safe_mode", False):
        os.environ["KSI_LOAD_PLUGINS"] = ""  # of the daemon that is started, for as long as it is supervised
    tell = tell_nobody if _wants_json(options) else tell_people
    return _finish(options, COMMANDS[options.command](paths, options, tell))


def _failure(options: argparse.Namespace, error: KSIError) -> Outcome:
    unknown = isinstance(error, PermissionDenied) or options.command == "status"
    hint = f"\n  {error.hint}" if error.hint else ""
    code = Exit.NOT_PERMITTED if unknown else Exit.FAILED
    return Outcome(code, f"daemon_control: {error.message}{hint}", {"error": error.to_wire()})


def _finish(options: argparse.Namespace, outcome: Outcome) -> int:
    if _wants_json(options):
        tell_people(json.dumps(outcome.data, ensure_ascii=False) + "\n")
    elif outcome.code == Exit.OK or options.command in {"status", "health"}:
        tell_people(outcome.text + "\n")
    else:
        complain(outcome.text)
    return outcome.code


def _start(paths: Paths, options: argparse.Namespace, tell: Tell) -> Outcome:
    if options.foreground:
        return start_here(paths, tell=tell)
    if options.reload:
        return keep_reloading(paths, timeout_s=options.timeout, tell=tell)
    return start(paths, timeout_s=options.timeout)


def _stop(paths: Paths, options: argparse.Namespace, tell: Tell) -> Outcome:
    return stop(paths, now=options.now, tell=tell)


def _restart(paths: Paths, options: argparse.Namespace, tell: Tell) -> Outcome:
    return restart(paths, now=options.now, timeout_s=options.timeout, tell=tell)


def _reload(paths: Paths, _options: argparse.Namespace, _tell: Tell) -> Outcome:
    return reload_settings(paths)


def _status(paths: Paths, _options: argparse.Namespace, _tell: Tell) -> Outcome:
    return status(paths)


def _health(paths: Paths, _options: argparse.Namespace, _tell: Tell) -> Outcome:
    return health(paths)


COMMANDS: Final[Mapping[str, Callable[[Paths, argparse.Namespace, Tell], Outcome]]] = {
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "status": _status,
    "health": _health,
    "reload": _reload,
}


def _logs(paths: Paths, options: argparse.Namespace) -> int:
    lines = options.lines if options.lines is not None or options.since else LINES
    wanted = Wanted(lines=lines, since=options.since or "", level=options.level)

    def show(line: Line) -> None:
        tell_people((json.dumps(line, ensure_ascii=False) if _wants_json(options) else render(line)) + "\n")

    if options.follow:
        follow(paths.log, wanted, show)
    for line in read(paths.log, wanted):
        show(line)
    if not paths.log.exists():
        complain(f"There is no log yet: {paths.log}")
    return Exit.OK


def _wants_json(options: argparse.Namespace) -> bool:
    return getattr(options, "json", False)


def _parser(program: str) -> argparse.ArgumentParser:
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--home", metavar="DIR", help="where the daemon lives; default: $KSI_HOME, or ./var")
    common.add_argument("--json", action="store_true", help="answer with JSON on stdout")
    parser = _Parser(
        prog=program,
        description="Start, stop and look at the KSI daemon.",
        epilog=EPILOG.replace("PROGRAM", f"python3 {program}" if program.endswith(".py") else program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, parents=[common])

    _add_start(command("start", "Start the daemon and return once it answers."))
    _add_stop(command("stop", "Let running work end, then stop the daemon."))
    again = command("restart", "Check the settings and plugins, then stop and start.")
    _add_stop(again)
    _add_safe_mode(again)
    _add_timeout(again)
    command("reload", "Put changed settings in force, as far as that goes without a restart.")
    command("status", "Tell how the daemon fares. Codes: 0 running, 1 dead, 3 stopped, 4 not known.")
    command("health", "Tell it in one line. Codes: 0 serving, 1 unhealthy, 3 not running.")
    _add_logs(command("logs", "Show the daemon's log."))
    return parser


def _add_start(parser: argparse.ArgumentParser) -> None:
    _add_safe_mode(parser)
    parser.add_argument("--foreground", action="store_true", help="be the daemon, unsupervised, here")
    parser.add_argument(
        "--reload",
        action="store_true",
        help="start again when code changes, until Ctrl-C; for plugin authors",
    )
    _add_timeout(parser)


def _add_safe_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--safe-mode", action="store_true", help="load the built-in plugins only")


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=START_S,
        metavar="SECONDS",
        help="for the start; default: %(default)g",
    )


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="give up running work")


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines, until Ctrl-C")
    parser.add_argument("-n", "--lines", type=_count, metavar="N", help=f"the last N; default: {LINES}")
    parser.add_argument("--since", type=_since, metavar="10m", help="as far back as this, or this time")
    parser.add_argument("--level", choices=LEVELS, default="debug", help="this level and graver ones")


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds between 0 and {LONGEST_S:g}")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def _since(text: str) -> str:
    try:
        return parse_since(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 10m nor like 2026-01-31T12:00") from error
