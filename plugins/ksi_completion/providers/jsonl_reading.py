"""What the lines of a program mean, by its settings."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue, ValidationError

from ksi_common.events.completion import Usage
from ksi_completion.providers.command import Ended
from ksi_completion.providers.interface import Answer, ProviderFailure
from ksi_completion.providers.jsonl_settings import ANY, ExitMeaning, JsonlCliSettings, Meaning
from ksi_completion.providers.statuses import classified

_COUNTS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "cost_usd")
_KEPT: Final = (*_COUNTS, "answer", "session", "turn", "model", "finish_reason", "structured")


class JsonlReading:
    """One run."""

    is_enough = False

    def __init__(self, settings: JsonlCliSettings, model: str) -> None:
        self._settings = settings
        self._pieces: list[str] = []
        self._values: dict[str, Any] = {"model": model}
        self._has_ended = False

    @property
    def is_whole(self) -> bool:
        """The last word was said."""
        return self._has_ended

    @property
    def usage(self) -> Usage | None:
        """What it has said of tokens."""
        counts = {name: self._values[name] for name in _COUNTS if self._values.get(name) is not None}
        try:
            return Usage.model_validate(counts) if counts else None
        except ValidationError:
            return None

    def take(self, line: Mapping[str, Any]) -> str:
        """Hear a line; give the text that it adds. Raises ProviderFailure where there will be no answer."""
        meaning = next((one for one in self._settings.lines if _fits(one, line)), None)
        if meaning is None:
            return ""
        for name in _KEPT:
            if (path := getattr(meaning, name)) and (value := found(line, path)) is not None:
                self._values[name] = value
        said = found(line, meaning.failure) if meaning.failure else None
        if said is not None or meaning.kind:
            raise _failure(meaning, line, str(said or "the program failed"), self.usage)
        self._has_ended = self._has_ended or meaning.end
        text = found(line, meaning.text) if meaning.text else None
        if isinstance(text, str):
            self._pieces.append(text)
            return text
        return self._rest() if meaning.answer else ""

    def conclude(self, how: Ended) -> Answer:
        """Give the answer. Raises ProviderFailure."""
        exits = self._settings.exits
        meaning = exits.get(str(how.code))
        if meaning is None and how.code != 0 and not self._has_ended:
            meaning = exits.get(ANY, ExitMeaning())
        if meaning is not None:
            message = f"the program failed ({how})"
            raise ProviderFailure(message, reason=meaning.reason, kind=meaning.kind, usage=self.usage)
        if not self._has_ended and any(one.end for one in self._settings.lines):
            message = f"the program ended before its last word ({how})"
            raise ProviderFailure(message, reason="stream_cut", usage=self.usage)
        return self._answer()

    def _answer(self) -> Answer:
        values, usage = self._values, self.usage or Usage()
        text = str(values.get("answer") or "".join(self._pieces))
        finish = str(values.get("finish_reason") or "stop")
        response: Mapping[str, JsonValue] = {
            "result": text,
            "model": str(values["model"]),
            "finish_reason": finish,
            "usage": usage.model_dump(exclude_none=True),
        }
        session, turn = values.get("session"), values.get("turn")
        return Answer(
            text=text,
            model=str(values["model"]),
            finish_reason=finish,
            usage=usage,
            response=response,
            provider_session=None if session is None else str(session),
            resume_at=None if turn is None else str(turn),
            structured=values.get("structured"),
        )

    def _rest(self) -> str:
        """Give what of the whole answer was not said in pieces."""
        whole, said = str(self._values.get("answer") or ""), "".join(self._pieces)
        rest = whole[len(said) :] if whole.startswith(said) else ""
        self._pieces.append(rest)
        return rest


def found(line: Mapping[str, Any], path: str) -> Any:
    """Give the value at a path; None where there is none."""
    value: Any = line
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _fits(meaning: Meaning, line: Mapping[str, Any]) -> bool:
    return all(found(line, path) == value for path, value in meaning.when.items())


def _failure(meaning: Meaning, line: Mapping[str, Any], said: str, usage: Usage | None) -> ProviderFailure:
    status = found(line, meaning.status) if meaning.status else None
    is_status = str(status).isdecimal() and 400 <= int(str(status)) <= 599
    kind, reason = classified(int(str(status))) if is_status else ("transient", "failed")
    after_s = found(line, meaning.retry_after_s) if meaning.retry_after_s else None
    return ProviderFailure(
        said[:1000],
        reason=meaning.reason or reason,
        kind=meaning.kind or kind,
        retry_after_s=float(after_s) if isinstance(after_s, int | float) else None,
        usage=usage,
    )
