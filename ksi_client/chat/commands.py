"""What can be said in a conversation besides questions: /help and its like."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from ksi_client.chat.chatting import Chat
from ksi_client.chat.spending import left, spent
from ksi_client.cli.safety import one_line
from ksi_client.raw import call_raw
from ksi_common.guessing import nearest
from ksi_common.records import record

SHOWN: Final = 10
"""Sessions that /sessions lists."""


class Leave(Exception):
    """The conversation is over."""


@record
class Command:
    """A command. ``run`` gives the question that it stands for, if any, from its argument."""

    summary: str
    run: Callable[["Commands", str], str | None]
    argument: str = ""


class Commands:
    """Runs the commands of one conversation. ``read_line``: asks for a line of a longer question."""

    def __init__(self, chat: Chat, read_line: Callable[[str], str]) -> None:
        self._chat = chat
        self._read_line = read_line
        self.last_question: str | None = None
        """What /retry asks again."""

    def question(self, line: str) -> str | None:
        """Give what a line asks: itself, or what its command stands for; raise Leave at /quit."""
        if not line.startswith("/"):
            return line if line.strip() else None
        name, _, argument = line.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            self._guess(name)
            return None
        return command.run(self, argument.strip())

    def help(self, _: str) -> None:
        """List the commands."""
        width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            self._write(f"  {f'{name} {command.argument}':<{width}}  {command.summary}")

    def sessions(self, _: str) -> None:
        """List the sessions that were active last."""
        found = call_raw("conversation:list", {"limit": SHOWN})["conversations"]
        for conversation in found:
            name, count = conversation["session_id"], conversation["message_count"]
            mark = "*" if name == self._chat.session else " "
            when = datetime.fromisoformat(conversation["last_timestamp"]).astimezone()
            self._write(f"{mark} {name:<24}  {count:>4} messages  {when:%Y-%m-%d %H:%M}")
        self._write("Go on with one:  python3 chat.py -r SESSION" if found else "There are no sessions yet.")

    def model(self, name: str) -> None:
        """Choose the model of the next answers, or tell which it is."""
        if name:
            self._chat.model = name
            self._write(f"The next answers come from {name}.")
        else:
            self._write(self._chat.model or self._chat.answered_by or "the provider's own choice")

    def retry(self, _: str) -> str | None:
        """Ask the last question again."""
        if self.last_question is None:
            self._write("Nothing was asked yet.")
        return self.last_question

    def usage(self, _: str) -> None:
        """Tell what this session has used, and what it may."""
        session = self._chat.session
        if session is None:
            self._write("Nothing was asked yet.")
            return
        used = call_raw("completion:token_usage", {"session_id": session, "by": "model"})
        for group in used["groups"]:
            self._write(f"  {group['key']}: {spent(group)}")
        self._write(f"session {session}: {spent(used['total'])}")
        for budget in call_raw("budget:list", {"session_id": session})["budgets"]:
            self._write(f"  budget {budget['name']}: {left(budget)}")

    def new(self, _: str) -> None:
        """Begin a new session."""
        self._write(f"session {self._chat.renew()}")

    def multi(self, _: str) -> str | None:
        """Read a question of several lines, up to one that is a dot alone."""
        lines = []
        try:
            while (line := self._read_line("… ")) != ".":
                lines.append(line)
        except (EOFError, KeyboardInterrupt):
            return None
        text = "\n".join(lines)
        return text if text.strip() else None

    def quit(self, _: str) -> None:
        """End the conversation."""
        raise Leave

    def _guess(self, name: str) -> None:
        near = nearest(name, COMMANDS)
        meant = f" Did you mean {near[0]}?" if near else ""
        self._write(f"There is no {name}.{meant}   (/help lists them; a space before it asks it as it is)")

    def _write(self, line: str) -> None:
        self._chat.screen.write(one_line(line) + "\n")


COMMANDS: Final[Mapping[str, Command]] = {
    "/help": Command("what can be said here", Commands.help),
    "/sessions": Command("the sessions that were active last", Commands.sessions),
    "/model": Command("choose the model of the next answers, or tell it", Commands.model, "[NAME]"),
    "/usage": Command("what this session has used, in tokens and money", Commands.usage),
    "/retry": Command("ask the last question again", Commands.retry),
    "/new": Command("begin a new session", Commands.new),
    "/multi": Command("ask in several lines; a line with only a dot ends it", Commands.multi),
    "/quit": Command("leave; so does Ctrl-D", Commands.quit),
}
