"""Write an answer: for people as it is made, for programs whole or step by step."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

import orjson

from ksi_client.chat.answer import Answer
from ksi_client.chat.failures import lines_of, lines_of_no_answer
from ksi_client.chat.screen import Screen
from ksi_client.chat.steps import Step
from ksi_client.cli.safety import json_visible, one_line
from ksi_client.control.wording import duration
from ksi_common.errors import KSIError

NOT_TRIED: Final = frozenset(("breaker_open", "session_busy"))
"""Reasons to try later that are none of an attempt: it was not made."""

Format = Literal["text", "json", "stream-json"]

FORMATS: Final = ("text", "json", "stream-json")


class Show(Protocol):
    """Writes one answer."""

    def step(self, step: Step) -> None:
        """Hear of a step."""

    def end(self, answer: Answer) -> None:
        """Hear of the end, whichever it is."""

    def fail(self, error: KSIError, answer: Answer) -> None:
        """Hear of what keeps the end from being known."""


def show(format_: Format, screen: Screen) -> Show:
    """Give what writes one answer, the only one of this run."""
    if format_ == "json":
        return Whole(screen)
    if format_ == "stream-json":
        return StepByStep(screen)
    return Typed(screen) if screen.is_terminal else Piped(screen)


class Piped:
    """The text alone, once it is whole: what was written into a pipe cannot be taken back."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def step(self, step: Step) -> None:
        """Say that it takes longer, or that another model answers."""
        if (notice := notice_of(step)) is not None:
            self._screen.note(notice)

    def end(self, answer: Answer) -> None:
        """Write the text, or say why there is none."""
        if answer.end == "result":
            self._screen.say(answer.text or "")
            self._screen.end_line()
        else:
            self._screen.complain(lines_of_no_answer(answer))

    def fail(self, error: KSIError, answer: Answer) -> None:  # noqa: ARG002  (said by the error)
        """Say what went wrong."""
        self._screen.complain(lines_of(error))


class Typed:
    """The text as it is made. ``talking``: a conversation, which names who speaks and what it took."""

    def __init__(self, screen: Screen, *, talking: bool = False) -> None:
        self._screen = screen
        self._talking = talking
        self._shown = ""
        self._label = ""

    def step(self, step: Step) -> None:
        """Write what is new."""
        match step["type"]:
            case "accepted":
                self._accept(step)
            case "started" if self._shown:
                self._void(f"attempt {step.get('attempt')}: the text above is void")
            case "delta":
                self._say(step.get("text") or "")
            case _ if (notice := notice_of(step)) is not None:
                self._screen.note(notice)
                if step["type"] == "failover":
                    self._name(step)

    def end(self, answer: Answer) -> None:
        """Write what is missing of the text, and what it took; or why there is none."""
        if answer.end == "result":
            self._complete(answer.text or "")
        self._screen.end_line()
        if answer.end == "cancelled":
            self._screen.note("stopped")
        elif answer.end == "failed":
            self._screen.complain(lines_of_no_answer(answer))
        if self._talking and answer.end == "result":
            self._screen.write(self._screen.dim(f"{' ' * len(self._label)}·  {effort(answer)}") + "\n")

    def fail(self, error: KSIError, answer: Answer) -> None:  # noqa: ARG002  (said by the error)
        """Say what went wrong."""
        self._screen.end_line()
        self._screen.complain(lines_of(error))

    def _accept(self, step: Step) -> None:
        if not self._talking:
            return
        if ahead := step.get("position"):
            self._screen.note(f"{ahead} of this session {'is' if ahead == 1 else 'are'} before it")
        self._name(step)

    def _name(self, step: Step) -> None:
        """Write who speaks."""
        if not self._talking:
            return
        self._label = f"{one_line(step.get('model') or 'model')} ▸ "
        self._screen.write(self._screen.bold(self._label))

    def _say(self, text: str) -> None:
        self._shown += text
        self._screen.say(text)

    def _void(self, why: str) -> None:
        self._shown = ""
        self._screen.note(why)

    def _complete(self, text: str) -> None:
        if not text.startswith(self._shown):
            self._void("the text above is not what was answered")
        self._say(text.removeprefix(self._shown))


class Whole:
    """One JSON object, at the end."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def step(self, step: Step) -> None:
        """Wait."""

    def end(self, answer: Answer) -> None:
        """Write the answer."""
        _write_json(self._screen, answer.to_json())

    def fail(self, error: KSIError, answer: Answer) -> None:
        """Write the error in its place."""
        _write_json(self._screen, answer.to_json(error.to_wire()))


class StepByStep:
    """Each step as a JSON line."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def step(self, step: Step) -> None:
        """Write it."""
        _write_json(self._screen, {name: value for name, value in step.items() if value is not None})

    def end(self, answer: Answer) -> None:
        """Leave it at the last step."""

    def fail(self, error: KSIError, answer: Answer) -> None:
        """Write the error as the last line."""
        _write_json(
            self._screen, {"type": "error", "request_id": answer.request_id, "error": error.to_wire()}
        )


def effort(answer: Answer) -> str:
    """Say what an answer took: tokens, seconds and dollars; nothing, where it was given before."""
    usage = answer.usage or {}
    tokens, cost = usage.get("completion_tokens"), usage.get("cost_usd")
    parts = []
    if answer.cached:
        parts.append("given before, for nothing")
    elif tokens is not None:
        parts.append(f"{tokens:,} token{'s' * (tokens != 1)}")
    if answer.duration_ms is not None:
        parts.append(f"{answer.duration_ms / 1000:.1f} s")
    if cost is not None:
        parts.append(dollars(cost))
    if answer.provider_changed:
        parts.append(f"now by {one_line(answer.provider or '')}/{one_line(answer.model or '')}")
    return ", ".join(parts)


def dollars(cost: float) -> str:
    """Write an amount of money: cents, and what is less to two figures."""
    return f"${cost:.2f}" if cost >= 1 or cost == 0 else f"${cost:.2g}" if cost < 0.01 else f"${cost:.4f}"


def notice_of(step: Step) -> str | None:
    """Say in a line why an answer takes longer, or comes from elsewhere; None where a step is no such."""
    why = one_line((step.get("reason") or "").replace("_", " "))
    match step["type"]:
        case "retrying":
            again = duration(step.get("delay_s") or 0)
            if step.get("reason") in NOT_TRIED:
                return f"waiting {again}: {one_line(step.get('message') or why)}"
            return f"attempt {step.get('attempt')} failed ({why}); again in {again}"
        case "failover":
            instead = f"{one_line(step.get('provider') or '')}/{one_line(step.get('model') or '')}"
            return f"{instead} is asked instead ({why}: {one_line(step.get('message') or '')})"
        case "paused":
            return f"waiting: {one_line(step.get('message') or why)}"
    return None


def _write_json(screen: Screen, value: Mapping[str, Any]) -> None:
    screen.write(json_visible(orjson.dumps(value).decode()) + "\n")
