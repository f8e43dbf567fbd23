"""`ksi plugin enable` and `disable`: a line in ksi.toml, in which all that people wrote stays as it is."""

import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.plugin.project import GROUP
from ksi_client.cli.writing import write, write_json
from ksi_client.programs import control
from ksi_common.errors import InvalidArgument, NotFound, Unavailable
from ksi_common.guessing import nearest
from ksi_common.paths import Paths, default_home


@click.command()
@click.argument("name")
@common_options
@click.pass_obj
def enable(invocation: Invocation, name: str) -> None:
    """Let a plugin be loaded again, from the next start on.

    \b
    ksi plugin enable weather
    """  # noqa: D301
    _switch(invocation, name, on=True)


@click.command()
@click.argument("name")
@common_options
@click.pass_obj
def disable(invocation: Invocation, name: str) -> None:
    """Leave a plugin out, from the next start on. Its settings and data stay.

    \b
    ksi plugin disable weather
    """  # noqa: D301
    _switch(invocation, name, on=False)


def _switch(invocation: Invocation, name: str, *, on: bool) -> None:
    paths = Paths(default_home())
    _check_name(name, set(_known(paths, invocation)))
    changed = switch(paths.config, name, on=on)
    state = "on" if on else "off"
    if invocation.is_json:
        write_json(invocation, {"plugin": name, "enabled": on, "changed": changed, "file": str(paths.config)})
    elif changed:
        write(invocation, f"{name} is {state} from the next start on ({paths.config}): {control('restart')}")
    else:
        write(invocation, f"{name} is {state} already.")


def switch(file: Path, name: str, *, on: bool) -> bool:
    """Write ``enabled`` into a plugin's table; give whether that changed anything."""
    import tomlkit  # noqa: PLC0415 -- keeps comments and order, which tomllib cannot; needed here only
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8") if file.exists() else "")
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file} is no TOML: {error}", reason="bad_settings") from error
    plugins = document.setdefault("plugins", tomlkit.table(is_super_table=True))
    table = plugins.setdefault(name, tomlkit.table())
    if bool(table.get("enabled", True)) == on:
        return False
    if on:
        del table["enabled"]
        if not table:
            del plugins[name]
    else:
        table["enabled"] = False
    _replace(file, tomlkit.dumps(document))
    return True


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = file.resolve()  # where it is a link, it stays one
    unfinished = target.with_name(f"{target.name}.new")
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    with open(
        unfinished, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, mode)
    ) as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
    unfinished.chmod(mode)
    unfinished.replace(target)


def _known(paths: Paths, invocation: Invocation) -> Iterator[str]:
    yield from (entry.name for entry in entry_points(group=GROUP))
    yield from (path.stem for path in paths.plugins.glob("*.py"))
    try:
        with invocation.client() as client:
            found = client.call_raw("plugin:list", {}, safe=True)
    except Unavailable:
        return
    yield from (plugin["name"] for plugin in found["plugins"])


def _check_name(name: str, known: set[str]) -> None:
    if name == "system":
        raise InvalidArgument("system is the daemon itself", reason="not_a_plugin")
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near[0]}?" if near else "ksi plugin ls"
        raise NotFound(f"there is no plugin {name!r}", hint=hint, reason="no_plugin")
