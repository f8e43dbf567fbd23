"""What says how a program is asked, and what its lines mean: a table of ksi.toml, or a file of YAML."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from ksi_common.events.completion import ModelName
from ksi_completion.providers.interface import FailureClass
from ksi_completion.providers.section import Section
from ksi_completion.whole_path import WholePath

MAX_FILE_BYTES: Final = 1024 * 1024
ANY: Final = "*"
VALUES: Final = ("prompt", "system", "model", "session", "turn", "max_tokens", "schema", "tools", "folder")
"""What a template may name."""


def placeholders(template: str) -> list[str]:
    """List what a template names; raise ValueError where it is none."""
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]


def _template(template: str) -> str:
    unknown = [name for name in placeholders(template) if name not in VALUES]
    if unknown:
        raise ValueError(
            f"{template!r} names {unknown[0]!r}; there are {', '.join(VALUES)}; {{ is written {{{{"
        )
    return template


def _by_text(keys: object) -> object:
    return {str(key): value for key, value in keys.items()} if isinstance(keys, Mapping) else keys


Template = Annotated[str, AfterValidator(_template)]

FieldPath = Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)*$")]
"""Where a value is in a line: usage.input_tokens, choices.0.text."""


class Meaning(Section):
    """What some lines mean. All but ``when``, ``kind``, ``reason`` and ``end`` say where a value is."""

    when: dict[FieldPath, JsonValue] = Field(
        default_factory=dict, description="Which lines: those that have all these values."
    )
    text: FieldPath | None = Field(None, description="A piece of the answer.")
    answer: FieldPath | None = Field(None, description="The whole answer.")
    session: FieldPath | None = Field(None, description="The program's id of the session.")
    turn: FieldPath | None = Field(None, description="Its id of this turn.")
    model: FieldPath | None = Field(None, description="Which model answered.")
    finish_reason: FieldPath | None = Field(None, description="Why the answer ends.")
    prompt_tokens: FieldPath | None = Field(None, description="Of the prompt, cached ones included.")
    completion_tokens: FieldPath | None = Field(None, description="Of the answer.")
    cached_tokens: FieldPath | None = Field(None, description="Of the prompt, not computed again.")
    cost_usd: FieldPath | None = Field(None, description="The price of this call.")
    structured: FieldPath | None = Field(None, description="What a response_schema asked for.")
    failure: FieldPath | None = Field(None, description="Why there is no answer, where that is said.")
    status: FieldPath | None = Field(None, description="A failure's HTTP status, which says its class.")
    retry_after_s: FieldPath | None = Field(None, description="A failure's time to wait.")
    kind: FailureClass | None = Field(None, description="The class of a failure, which such a line then is.")
    reason: str | None = Field(None, description="A failure's name.")
    end: bool = Field(default=False, description="It is the program's last word.")


class ExitMeaning(Section):
    """What an exit code means, where no line has said more."""

    kind: FailureClass = Field("transient", description="The class of the failure.")
    reason: str = Field("exit_code", description="Its name.")


class JsonlCliSettings(Section):
    """A program that says what happens in lines of JSON."""

    file: WholePath | None = Field(None, description="A file of YAML that has what does not stand here.")
    command: list[Template] = Field(
        default_factory=list[Template], description="The program, and arguments that it always gets."
    )
    arguments: list[Template] = Field(
        default_factory=list[Template],
        description="More of them, each a template; one that names what a request does not have is left out.",
    )
    resume: list[Template] = Field(
        default_factory=list[Template],
        description="More, where it knows the session; without them it keeps none.",
    )
    stdin: Template = Field("{prompt}", description="What it reads.")
    models: list[ModelName] = Field(["default"], min_length=1, description="Models that may be asked for.")
    concurrency: int = Field(2, ge=1, le=64, description="Runs at once.")
    pass_env: list[str] = Field(
        default_factory=list[str],
        description="The daemon's variables that it gets, besides PATH, locale, proxies.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Variables for it, nothing secret.")
    work_dir: WholePath | None = Field(
        None, description="Where it runs, and its HOME; default: state/jsonl-cli/NAME in $KSI_HOME."
    )
    lines: list[Meaning] = Field(
        default_factory=list[Meaning], description="What its lines mean; of those that fit, the first."
    )
    exits: Annotated[dict[str, ExitMeaning], BeforeValidator(_by_text)] = Field(
        default_factory=dict, description='What its exit codes mean; "*" stands for any other but 0.'
    )

    @model_validator(mode="before")
    @classmethod
    def _with_file(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(path := given.get("file"), str | Path):
            return given
        return {**_read(Path(path)), **given}

    @model_validator(mode="after")
    def _is_enough(self) -> Self:
        if not self.command:
            raise ValueError("it has no command")
        if not any(meaning.text or meaning.answer for meaning in self.lines):
            raise ValueError("no entry of lines says where the answer is: text or answer")
        if any(name in placeholders(word) for word in self.command for name in VALUES if name != "folder"):
            raise ValueError("command may name {folder} only; arguments has the rest")
        return self

    @property
    def folder(self) -> Path:
        """The folder of the file, where programs that come with it are."""
        return self.file.parent if self.file else Path("/")

    def names(self, value: str) -> bool:
        """Tell whether a template names a value."""
        return any(value in placeholders(word) for word in (*self.arguments, *self.resume, self.stdin))


def _read(path: Path) -> Mapping[str, Any]:
    # Only here: who has no such file need not load it.
    import yaml  # noqa: PLC0415

    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_FILE_BYTES else None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', 'it is no text')}") from None
    if text is None:
        raise ValueError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        # A few lines of aliases can stand for gigabytes.
        _refuse_aliases(yaml.parse(text, Loader=yaml.SafeLoader))
        read = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict) or not all(isinstance(key, str) for key in read):
        raise ValueError(f"{path} holds no table")
    return read


def _refuse_aliases(events: Iterable[Any]) -> None:
    if any(type(event).__name__ == "AliasEvent" for event in events):
        raise ValueError("an alias (*) is not allowed in it")
