"""The table ``[plugins.NAME]`` of a plugin: read by its model, and offered as a service.

class WeatherSettings(BaseModel):
    city: str = Field("Berlin", description="Where.")

@hookimpl
def ksi_settings() -> type[BaseModel]:
    return WeatherSettings
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from ksi_common.errors import InvalidArgument
from ksi_common.guessing import nearest
from ksi_common.messages import accepted_names
from ksi_daemon.setting_origins import Key

ENABLED: Final = "enabled"
"""The one key of every plugin's table: false, and the plugin is not loaded."""


def is_enabled(table: Mapping[str, Any]) -> bool:
    """Tell whether a plugin is to be loaded; text is what the environment gives."""
    value = table.get(ENABLED, True)
    if isinstance(value, str):
        return value.strip().lower() not in {"false", "0", "no", "off"}
    return bool(value)


def own_table(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give what of a table is the plugin's."""
    return {key: value for key, value in table.items() if key != ENABLED}


def read_table(
    name: str,
    table: Mapping[str, Any],
    model: type[BaseModel] | None,
    *,
    origin: Callable[[Key], str] = lambda _: "",
) -> BaseModel | None:
    """Make a plugin's settings; raise InvalidArgument that names the key and its ``origin``, with a guess."""
    known = [*accepted_names(model), *model.model_fields] if model is not None else []
    for key in own_table(table):
        if key not in known:
            raise _unknown(name, key, known, origin(("plugins", name, key)))
    if model is None:
        return None
    try:
        return model.model_validate(dict(own_table(table)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key_path = ("plugins", name, *problem["loc"])
        path = ".".join(map(str, key_path))
        raise InvalidArgument(
            f"setting {path}: {problem['msg']}{origin(key_path)}", reason="bad_setting", setting=path
        ) from error


def _unknown(name: str, key: str, known: list[str], where: str) -> InvalidArgument:
    near = nearest(key, known)
    has = ", ".join(dict.fromkeys(known)) or "no settings of its own"
    guess = f'did you mean "{near[0]}"?' if near else f"it has {has}"
    return InvalidArgument(
        f'there is no setting "plugins.{name}.{key}"{where}; {guess}', reason="unknown_setting", setting=key
    )
