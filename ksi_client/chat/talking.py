"""The conversation: questions and answers in turn, until somebody leaves."""

from typing import Final

from ksi_client.chat.chatting import Chat
from ksi_client.chat.commands import COMMANDS, Commands, Leave
from ksi_client.chat.failures import lines_of
from ksi_client.chat.line_editor import LineEditor
from ksi_client.chat.showing import Typed
from ksi_client.cli.failures import INTERRUPTED
from ksi_common.errors import KSIError

KEYS: Final = "(/help, Ctrl-C stops an answer, Ctrl-D leaves)"


def talk(chat: Chat) -> int:
    """Hold a conversation on a terminal; give the exit code."""
    chat.begin(named=True)
    name = chat.screen.bold("KSI chat")
    chat.screen.write(f"{name}   session {chat.session}   provider {chat.provider()}   {KEYS}\n")
    with LineEditor(chat.paths.home / "state" / "chat_history", list(COMMANDS)) as editor:
        try:
            code = Talk(chat, editor).run()
        except KeyboardInterrupt:  # the second one, while an answer was made
            chat.screen.write("\n")
            code = INTERRUPTED
        except SystemExit as told:  # by SIGTERM, at the prompt
            code = int(told.code or 0)
    if chat.asked:
        chat.screen.end_line()
        chat.screen.write(f"Saved. Go on later:  python3 chat.py -r {chat.session}\n")
    return code


class Talk:
    """One conversation."""

    def __init__(self, chat: Chat, editor: LineEditor) -> None:
        self._chat = chat
        self._editor = editor
        self._commands = Commands(chat, editor.ask)

    def run(self) -> int:
        """Take turns until somebody leaves; Ctrl-C at the prompt does so at the second time in a row."""
        interrupted = False
        while True:
            try:
                line = self._editor.ask(self._chat.screen.prompt("you ▸ "))
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if interrupted:
                    return INTERRUPTED
                interrupted = True
                self._chat.screen.note("Ctrl-C again leaves, and so does Ctrl-D")
                continue
            interrupted = False
            try:
                self._answer(line)
            except Leave:
                return 0

    def _answer(self, line: str) -> None:
        try:
            question = self._commands.question(line)
            if question is not None:
                self._ask(question)
        except KSIError as error:
            self._chat.screen.complain(lines_of(error))

    def _ask(self, question: str) -> None:
        self._commands.last_question = question
        self._chat.reach()
        self._chat.ask(question, Typed(self._chat.screen, talking=True))
