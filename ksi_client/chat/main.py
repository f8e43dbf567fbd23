"""Run a command line of ``chat.py``: one question, or a conversation."""

import os
import sys
from collections.abc import Sequence

import click
import orjson

from ksi_client.chat.answer import Answer
from ksi_client.chat.arguments import Wishes, parse, wants_json
from ksi_client.chat.chatting import Chat
from ksi_client.chat.failures import code_of, code_of_answer
from ksi_client.chat.prompt import joined, read_piped
from ksi_client.chat.screen import Screen
from ksi_client.chat.showing import show
from ksi_client.chat.talking import talk
from ksi_client.cli.failures import INTERRUPTED, USAGE, report_file
from ksi_client.cli.main import BROKEN_PIPE
from ksi_client.cli.safety import json_visible
from ksi_common.errors import KSIError
from ksi_common.paths import Paths, default_home
from ksi_common.standard_streams import make_usable


def main() -> None:
    """Run ``chat.py``, and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run a command line; give the exit code."""
    os.umask(0o077)  # what is made here, and by a daemon that is started, is its owner's alone
    make_usable()
    screen = Screen(sys.stdout, sys.stderr, os.environ)
    try:
        return _run(argv, screen)
    except (KeyboardInterrupt, click.Abort):
        if screen.is_terminal:
            screen.write("\n")  # below the ^C
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter must not try to flush what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:  # a full disk
        return report_file(error, program="chat")


def _run(argv: Sequence[str], screen: Screen) -> int:
    try:
        wishes = parse(argv)
        if wishes is None:
            return 0
        return _chat(wishes, screen)
    except click.ClickException as error:
        if wants_json(argv):
            wrong = {"code": "INVALID_ARGUMENT", "message": error.message, "details": {"reason": "usage"}}
            screen.write(json_visible(orjson.dumps(Answer().to_json(wrong)).decode()) + "\n")
        else:
            error.show()
        return USAGE


def _chat(wishes: Wishes, screen: Screen) -> int:
    chat = Chat(wishes, Paths(default_home()), screen)
    shown = show(wishes.format, screen)
    try:
        question = _question(wishes, screen)
        if question is None:
            return talk(chat)
        chat.begin()
        answer = chat.ask(question, shown)
    except KSIError as error:
        shown.fail(error, chat.answer)
        return INTERRUPTED if chat.was_interrupted else code_of(error)
    was_stopped = chat.was_interrupted and answer.end == "cancelled"
    return INTERRUPTED if was_stopped else code_of_answer(answer)


def _question(wishes: Wishes, screen: Screen) -> str | None:
    """Give what is asked; None where it is to be a conversation."""
    terminal = sys.stdin.isatty()
    if wishes.prompt is None and terminal:
        if wishes.format != "text" or not screen.is_terminal:
            raise click.UsageError("there is no question, and a conversation needs a terminal")
        return None
    question = joined(wishes.prompt, "" if terminal else _piped(screen))
    if not question:
        raise click.UsageError("the question is empty")
    return question


def _piped(screen: Screen) -> str:
    return read_piped(sys.stdin.buffer, waiting=lambda: screen.note("reading stdin to its end"))
