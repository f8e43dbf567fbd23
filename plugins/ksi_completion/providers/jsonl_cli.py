"""Any program that answers in lines of JSON: its settings say how it is asked and what it says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter

from ksi_completion.providers.asking import asked, told
from ksi_completion.providers.command import MAX_ARGUMENT_BYTES, Commands, Invocation
from ksi_completion.providers.environment import ALWAYS, NETWORK, chosen
from ksi_completion.providers.generation import FedGeneration
from ksi_completion.providers.installed import Found, on_path
from ksi_completion.providers.interface import Job, ProviderFailure
from ksi_completion.providers.jsonl_reading import JsonlReading
from ksi_completion.providers.jsonl_settings import JsonlCliSettings, placeholders
from ksi_daemon.plugin import Processes


class JsonlCliProvider:
    """A CompletionProvider by the name that its settings give it."""

    def __init__(self, name: str, processes: Processes, state_dir: Path, settings: JsonlCliSettings) -> None:
        self.name = name
        self.models: Sequence[str] = settings.models
        self.concurrency = settings.concurrency
        self.keeps_sessions = bool(settings.resume)
        self.restricts_tools = settings.names("tools")
        self._settings = settings
        self._work = settings.work_dir or state_dir.absolute() / "jsonl-cli" / name
        program = settings.command[0].format(folder=settings.folder)
        self._program = Found(lambda: on_path(program))
        self._commands = Commands(processes)

    def missing(self) -> str | None:
        """Say that there is no such program."""
        if self._program.get():
            return None
        return f"there is no program {self._settings.command[0]!r}; jsonl-cli.{self.name}.command names it"

    async def start(self, job: Job) -> FedGeneration:
        """Begin an answer; raise ProviderFailure. Cancelling it leaves nothing at work."""
        if problem := self.missing():
            raise ProviderFailure(problem, reason="not_installed", kind="not_deployed")
        if job.tools or (job.allowed_tools is not None and not self.restricts_tools):
            message = f"{self.name} takes no tools of a request, and cannot be held to some"
            raise ProviderFailure(message, reason="no_tools", kind="invalid")
        values = self._values(job)
        settings = self._settings
        templates = [*settings.arguments, *(settings.resume if job.provider_session is not None else ())]
        invocation = Invocation(
            argv=[self._program.get() or "", *self._command(), *_arguments(templates, values)],
            env=chosen((*ALWAYS, *NETWORK, *settings.pass_env)) | {"HOME": str(self._work)} | settings.env,
            cwd=self._work,
            purpose=self.name,
            stdin=_filled(settings.stdin, values).encode(),
        )
        return await self._commands.start(invocation, JsonlReading(settings, job.model))

    async def close(self) -> None:
        """End its runs."""
        await self._commands.close()

    def _command(self) -> Sequence[str]:
        return [word.format(folder=self._settings.folder) for word in self._settings.command[1:]]

    def _values(self, job: Job) -> Mapping[str, str]:
        system = told(job)
        prompt = asked(job)
        if system and not self._settings.names("system"):
            prompt = f"{system}\n\n{prompt}"
        values = {
            "prompt": prompt,
            "system": system or None,
            "model": job.model,
            "session": job.provider_session,
            "turn": job.resume_at,
            "max_tokens": None if job.max_tokens is None else str(job.max_tokens),
            "schema": None if job.response_schema is None else json.dumps(job.response_schema),
            "tools": None if job.allowed_tools is None else ",".join(job.allowed_tools),
            "folder": str(self._settings.folder),
        }
        return {name: value for name, value in values.items() if value is not None}


def _arguments(templates: Sequence[str], values: Mapping[str, str]) -> Sequence[str]:
    """Fill those that name nothing absent. Raises ProviderFailure where a value would be read as a flag."""
    words: list[str] = []
    for template in templates:
        if not all(name in values for name in placeholders(template)):
            continue
        word = _filled(template, values)
        # Behind a "--" nothing is a flag.
        if template.startswith("{") and word.startswith("-") and "--" not in words:
            message = f"the value of {template} begins with '-', and would be taken for a flag"
            raise ProviderFailure(message, reason="bad_argument", kind="invalid")
        if "\0" in word or len(word.encode()) >= MAX_ARGUMENT_BYTES:
            message = f"the value of {template} has a null character, or {MAX_ARGUMENT_BYTES} bytes"
            raise ProviderFailure(message, reason="bad_argument", kind="invalid")
        words.append(word)
    return words


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Fill a template by its names alone: no attribute of a value can be reached, no value is a template."""
    parts = Formatter().parse(template)
    return "".join(text + (values.get(name, "") if name is not None else "") for text, name, _, _ in parts)
