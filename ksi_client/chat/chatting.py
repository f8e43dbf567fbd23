"""One chat: its session, the model it asks, and each question with its answer."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ksi_client.chat.answer import Answer
from ksi_client.chat.arguments import Wishes
from ksi_client.chat.asking import Asking
from ksi_client.chat.interrupts import Interrupts
from ksi_client.chat.prompt import Prompt
from ksi_client.chat.reaching import reach
from ksi_client.chat.screen import Screen
from ksi_client.chat.sessions import LastSession, fresh, known
from ksi_client.chat.showing import Show
from ksi_client.cli.safety import one_line
from ksi_client.raw import call_raw
from ksi_common.errors import KSIError
from ksi_common.paths import Paths

EMBEDDED: Final = "embedded"
PROVIDER: Final = "KSI_PROVIDER"
"""The variable by which a daemon is told, at its start, who answers."""
OTHERS: Final = "Others: --provider / --model, see ./ksi events show completion:async"


class Chat:
    """What one run of ``chat.py`` asks. ``session``: None until the daemon has named it."""

    def __init__(self, wishes: Wishes, paths: Paths, screen: Screen) -> None:
        self.wishes = wishes
        self.paths = paths
        self.screen = screen
        self.session: str | None = None
        self.model = wishes.model
        self.answered_by: str | None = None
        """The model of the last answer."""
        self.answer = Answer()
        """The last one."""
        self.asked = 0
        """Questions that were accepted."""
        self.was_interrupted = False
        """The last answer was stopped by Ctrl-C, or nearly."""
        self._last = LastSession(paths.home)

    def begin(self, *, named: bool = False) -> None:
        """Find the daemon and the session; ``named``: a new one needs its name now."""
        self.reach()
        if self.wishes.go_on:
            self.session = self._last.read()
        elif self.wishes.resume is not None:
            self.session = known(self.wishes.resume)
        elif self.wishes.name is not None or named:
            self.session = fresh(self.wishes.name)

    def reach(self) -> None:
        """Return where the daemon runs, having started it if need be."""
        reach(self.paths, self.screen, may_start=self.wishes.may_start)

    def provider(self) -> str:
        """Name who is to answer: the one wished for, or the first that can."""
        if self.wishes.provider is not None:
            return self.wishes.provider
        providers = call_raw("system:health", socket=self.paths.socket)["checks"].get("providers", {})
        usable = providers.get("detail", {}).get("usable", ())
        return one_line(next(iter(usable), "none"))

    def renew(self) -> str:
        """Turn to a new session; give its name."""
        self.session = fresh()
        return self.session

    def ask(self, text: str, show: Show) -> Answer:
        """Ask and show the answer; raise the KSIError that keeps it from being known."""
        request_id = f"chat-{os.urandom(8).hex()}"
        self.answer = answer = Answer(request_id, self.session)
        asking = Asking(
            request_id,
            Prompt(text, self._prompts, request_id),
            self._options(),
            timeout_s=self.wishes.timeout_s,
            lost=lambda: self.screen.note("connection lost, retrying…"),
            slow=lambda: self.screen.note_from_handler("stopping… (Ctrl-C again leaves)"),
        )
        interrupts = Interrupts(asking.stop)
        try:
            with interrupts:
                for step in asking.steps():
                    answer.take(step)
                    if step["type"] == "accepted":
                        self._accepted(answer)
                    show.step(step)
        finally:
            self.was_interrupted = interrupts.pressed
        show.end(answer)
        return answer

    @property
    def _prompts(self) -> Path:
        return self.paths.home / "lib" / "prompts"

    def _options(self) -> dict[str, Any]:
        wishes = self.wishes
        fields = {
            "session_id": self.session,
            "model": self.model,
            "provider": wishes.provider,
            "system": wishes.system,
            "timeout_s": wishes.timeout_s,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _accepted(self, answer: Answer) -> None:
        if self.asked == 0 and (self.screen.notes_are_read or not self._last.exists):
            self.screen.note(introduction(answer))
        if self.asked == 0:
            self._look_at_environment()
        self.asked += 1
        self.session = answer.session_id
        self.answered_by = answer.model
        try:
            self._last.write(str(answer.session_id))
        except OSError as error:
            self.screen.note(f"-c will not find this session: {error}")

    def _look_at_environment(self) -> None:
        """Say so where the daemon was started without the provider that the environment names."""
        wanted = os.environ.get(PROVIDER)
        if not wanted or self.wishes.provider is not None:
            return
        with suppress(KSIError):  # it is no reason to ask for nothing
            known = call_raw("completion:provider_status", socket=self.paths.socket)["providers"]
            if not any(one["is_default"] and one["provider"] == wanted for one in known):
                self.screen.note(
                    f"{PROVIDER}={one_line(wanted)} is read when the daemon starts, "
                    "and this one ran already: python3 daemon_control.py restart"
                )


def introduction(answer: Answer) -> str:
    """Say which model answers, and how to choose another."""
    if answer.provider == EMBEDDED:
        return f"{answer.model}, the small built-in model, answers (no key needed). {OTHERS}"
    return f"{answer.model} of {answer.provider} answers. {OTHERS}"
