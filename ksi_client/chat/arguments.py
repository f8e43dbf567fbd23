"""What a run of ``chat.py`` was asked for."""

from collections.abc import Sequence
from typing import Any, Final, cast

import click

from ksi_client.chat.showing import FORMATS, Format
from ksi_client.cli.options import Duration
from ksi_common.ids import is_name
from ksi_common.records import record

EXIT_CODES: Final = """\
Exit codes: 0 answered, 1 it failed, 2 wrong usage, 3 KSI is not running, 5 timed out, 6 overloaded:
retry later, 130 stopped by Ctrl-C."""


@record
class Wishes:
    """The options. ``prompt``: None where none was given; ``timeout_s``: seconds for each answer."""

    prompt: str | None = None
    go_on: bool = False
    resume: str | None = None
    name: str | None = None
    model: str | None = None
    provider: str | None = None
    system: str | None = None
    format: Format = "text"
    may_start: bool = True
    timeout_s: float | None = None


class SessionName(click.ParamType[str]):
    """What may name a session."""

    name = "session"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the name."""
        if not is_name(str(value)):
            allowed = "letters, digits, . _ - ; up to 128; beginning with a letter or a digit"
            self.fail(f"{value!r} is not allowed: {allowed}", param, ctx)
        return str(value)


def parse(argv: Sequence[str]) -> Wishes | None:
    """Read a command line; None where help was asked for and given. Raises click's usage errors."""
    try:
        wishes = chat.main(list(argv), prog_name="chat.py", standalone_mode=False)
    except click.NoSuchOption as error:
        if error.possibilities:
            raise
        message = f"{error.message} A question that begins with - is given by -p."
        raise click.NoSuchOption(error.option_name, message, ctx=error.ctx) from None
    return wishes if isinstance(wishes, Wishes) else None


def wants_json(argv: Sequence[str]) -> bool:
    """Tell whether a command line that may be wrong is a program's."""
    return any(
        word.removeprefix("--output-format=") in FORMATS[1:] and (before == "--output-format" or "=" in word)
        for before, word in zip(("", *argv), argv, strict=False)
    )


@click.command(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[QUESTION]...")
@click.option("-p", "--prompt", metavar="TEXT", help="The question; what is piped in is added below it.")
@click.option("-c", "--continue", "go_on", is_flag=True, help="Go on with the last session.")
@click.option("-r", "--resume", type=SessionName(), metavar="SESSION", help="Go on with this session.")
@click.option("--name", "--session", "name", type=SessionName(), help="Name the new session.")
@click.option("--model", help="Which model answers.")
@click.option("--provider", help="Who runs it.")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option(
    "--output-format", "format_", type=click.Choice(FORMATS), default="text", help="How to write the answer."
)
@click.option("--no-start", is_flag=True, help="Do not start KSI where it is not running.")
@click.option("--timeout", "timeout_s", type=Duration(), metavar="TIME", help="How long to wait: 30s, 5m.")
def chat(
    words: tuple[str, ...], *, prompt: str | None, format_: str, no_start: bool, **others: Any
) -> Wishes:
    """Talk with a language model. No key is needed: a small one is built in.

    \b
    python3 chat.py                              talk
    python3 chat.py "What is an event log?"      ask one question
    git diff | python3 chat.py -p "write a commit message"
    python3 chat.py -c "And in one sentence?"    go on with the last session
    python3 chat.py -r brave-otter               go on with another
    python3 chat.py -p hi --output-format json | jq -r .result
    """  # noqa: D301  (\b keeps click from joining the lines)
    if prompt is not None and words:
        raise click.UsageError("the question is given twice: by -p, and as words")
    if sum((others["go_on"], others["resume"] is not None, others["name"] is not None)) > 1:
        raise click.UsageError("-c, -r and --name exclude each other")
    given = prompt if prompt is not None else " ".join(words) if words else None
    return Wishes(
        prompt=None if given is None else _readable(given),
        format=cast("Format", format_),
        may_start=not no_start,
        **others,
    )


def _readable(argument: str) -> str:
    """Give an argument without the bytes that were no UTF-8."""
    return argument.encode(errors="surrogateescape").decode(errors="replace")
