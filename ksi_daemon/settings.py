"""Settings: environment ``KSI_*`` over ksi.toml over the user's and the system's over defaults."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ksi_common.errors import InvalidArgument, PermissionDenied
from ksi_common.events.types import EventPattern
from ksi_common.frame_fields import MAX_TIMEOUT_S
from ksi_common.guessing import nearest
from ksi_common.paths import Paths, stranger
from ksi_common.strict_json import MAX_INTEGER
from ksi_daemon.setting_origins import DELIMITER, PREFIX, Key, no_json, origin_of


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("input should be a number, not a boolean")  # noqa: TRY004 -- pydantic takes no other
    return value


Seconds = Annotated[float, BeforeValidator(_number), Field(le=MAX_TIMEOUT_S)]
"""A time that is set: a number, and not without end."""
Days = Annotated[float, BeforeValidator(_number), Field(le=1_000_000)]
Count = Annotated[int, BeforeValidator(_number), Field(le=MAX_INTEGER)]
"""What clocks and columns can hold: TOML has infinity, too, and integers without end."""


# A start waits for what is done here. So the default of a table is constructed, and not validated; and a list
# is made by ``list[X]``: pydantic looks at the signature of ``list``, which Python parses with a tokenizer.


class Section(BaseModel):
    """A table of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class LogSettings(Section):
    """What is written to the log."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What matters less is not written: debug, info, warning or error."
    )
    requests: bool = Field(
        default=False, description="A line for each event handled. Costs more than the event."
    )
    max_bytes: Count = Field(16 * 1024 * 1024, ge=64 * 1024, description="Of one file, before it is rotated.")
    files: int = Field(5, ge=1, le=100, description="Rotated files that are kept.")


class Limits(Section):
    """Where to stop. Seconds and bytes."""

    connections: Count = Field(4096, ge=1, description="Connections at once; one more is told so and closed.")
    in_flight: Count = Field(128, ge=1, description="Requests of one connection that are not answered yet.")
    streams: Count = Field(1024, ge=1, description="Streams of one connection.")
    handler_s: Seconds = Field(30.0, gt=0, description="A request's time, where its caller gives none.")
    slow_s: Seconds = Field(5.0, gt=0, description="A request that takes longer is named in the log.")
    idempotency_s: Seconds = Field(
        86_400.0, gt=0, description="How long an idempotency key is remembered, with the answer it got."
    )
    drain_s: Seconds = Field(30.0, ge=0, description="Time for running work when the daemon stops.")
    partial_line_s: Seconds = Field(10.0, gt=0, description="A line that has begun must end within.")
    unwritable_s: Seconds = Field(
        10.0, gt=0, description="A connection that takes nothing for this long is cut."
    )
    heartbeat_s: Seconds = Field(
        10.0, gt=0, description="Between marks of a subscription that has no events."
    )
    disk_free_bytes: Count = Field(500 * 1024 * 1024, ge=0, description="Below this, health is degraded.")


class RetentionRule(Section):
    """How long the data of some events is kept, and how much of it; what is not said is not limited."""

    pattern: EventPattern
    max_age_days: Days | None = Field(None, ge=0)
    max_bytes: Count | None = Field(None, ge=0)


class RetentionSettings(Section):
    """What is kept of the log."""

    max_age_days: Days = Field(30.0, ge=0, description="The data of events, where no rule says otherwise.")
    max_bytes: Count = Field(2_000_000_000, ge=0, description="Of that data in all; the oldest goes first.")
    rules: list[RetentionRule] = Field(
        default_factory=list[RetentionRule],
        description="Tables of pattern, max_age_days, max_bytes; the first that matches an event holds.",
    )
    stubs_max_age_days: Days = Field(90.0, ge=0, description="What is left of an event without its data.")
    max_stubs: Count = Field(
        10_000_000, ge=0, description="Rows of the log in all, where the oldest have no data."
    )
    every_s: Seconds = Field(3600.0, gt=0, description="Between two sweeps.")

    @property
    def all_rules(self) -> Sequence[RetentionRule]:
        """Give the rules, and at the end the one for everything."""
        everything = RetentionRule(pattern="*", max_age_days=self.max_age_days, max_bytes=self.max_bytes)
        return (*self.rules, everything)


def _folders(value: object) -> object:
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [part for part in value.split(os.pathsep) if part]


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        extra="forbid",
        frozen=True,
        defer_build=True,
        nested_model_default_partial_update=True,
    )

    strict: bool = Field(default=False, description="Bugs in handlers end the daemon; for tests.")
    load_plugins: str | None = Field(None, description="Only these plugins, by name, parted by commas.")
    plugins_dir: Annotated[list[Path], NoDecode, BeforeValidator(_folders)] = Field(
        default_factory=list[Path],
        description="More folders of single-file plugins; in the environment parted by ':'.",
    )
    log: LogSettings = LogSettings.model_construct()
    limits: Limits = Limits.model_construct()
    retention: RetentionSettings = RetentionSettings.model_construct()
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Tables of plugins.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read environment and TOML files; no .env: the working directory is nobody's to trust."""
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, deep_merge=True))

    @classmethod
    def origin(cls, key: Key) -> str:
        """Say in brackets which file or variable sets a key, for the message that refuses it; "": none."""
        files: Any = cls.model_config.get("toml_file") or ()
        return origin_of(key, files)


def load_settings(paths: Paths) -> Settings:
    """Read the settings of a home; raise InvalidArgument that names the key and its file, with a guess.

    Settings name programs that are run, so a file of another user's is refused: PermissionDenied.
    """
    for file in config_files(paths):
        if file.exists() and (uid := stranger(file)) is not None:
            raise PermissionDenied(f"{file} belongs to another user (uid {uid})", reason="not_owner")

    class Located(Settings):
        model_config = SettingsConfigDict(toml_file=config_files(paths))

    try:
        return Located()
    except ValidationError as error:
        raise _refusal(error, Located) from None
    except ValueError as error:  # TOML that is none; pydantic-settings' own errors
        where = "".join(f"{file}: " for file in config_files(paths) if _is_no_toml(file))
        wrong = ", ".join(no_json(_tables())) if not where else ""
        why = f"{wrong} in the environment is no JSON" if wrong else f"{where}{error}"
        raise InvalidArgument(f"settings cannot be read: {why}", reason="bad_settings") from error


def _is_no_toml(file: Path) -> bool:
    import tomllib  # noqa: PLC0415 -- half a megabyte that a daemon without a file does not need

    try:
        tomllib.loads(file.read_text("utf-8"))
    except OSError:
        return False
    except ValueError:
        return True
    return False


def config_files(paths: Paths) -> list[Path]:
    """List the files that settings are read from, the weakest first."""
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path("/etc/ksi/config.toml"), user / "ksi" / "config.toml", paths.config]


def _refusal(error: ValidationError, settings: type[Settings]) -> InvalidArgument:
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    where = settings.origin(problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = nearest(path, list(setting_names()))
        hint = f'did you mean "{near[0]}"?' if near else "docs/reference/settings.md lists them"
        return InvalidArgument(f'there is no setting "{path}"{where}', hint=hint, reason="unknown_setting")
    wrong = problem["msg"].removeprefix("Value error, ")
    return InvalidArgument(f"setting {path}: {wrong}{where}", reason="bad_setting", setting=path)


def setting_names() -> list[str]:
    """List every setting by its dotted name."""
    names: list[str] = []
    for name, info in Settings.model_fields.items():
        section = info.annotation
        if _is_section(section):
            names.extend(f"{name}.{key}" for key in section.model_fields)
        else:
            names.append(name)
    return names


def _is_section(annotation: object) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _tables() -> list[str]:
    return [
        name
        for name, info in Settings.model_fields.items()
        if name == "plugins" or _is_section(info.annotation)
    ]
