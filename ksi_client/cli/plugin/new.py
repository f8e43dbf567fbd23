"""`ksi plugin new`: a folder with a plugin that answers, from a template that comes with KSI."""

import keyword
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Final

import click

from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.plugin.project import GROUP
from ksi_client.cli.writing import write, write_json
from ksi_common.errors import AlreadyExists, InvalidArgument

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_TAKEN: Final = frozenset(("ksi", "system", "plugin", "test"))


@click.command()
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="The folder to make; default: ./ksi_NAME.")
@common_options
@click.pass_obj
def new(invocation: Invocation, name: str, to: Path | None) -> None:
    """Make a folder with a plugin: an event, its handler, a test.

    \b
    ksi plugin new weather
    cd ksi_weather
    ksi plugin check

    Nothing is downloaded and nothing installed. The name becomes the events' namespace: weather:hello.
    """  # noqa: D301
    check_name(name)
    folder = to or Path(f"ksi_{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(
            f"{folder} is there already, and not empty", hint="give another one: --to FOLDER", reason="taken"
        )
    made = list(rendered(name))
    for path, text in made:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    if invocation.is_json:
        write_json(invocation, {"folder": str(folder), "files": [path for path, _ in made]})
        return
    for path, _ in made:
        write(invocation, f"  {folder / path}")
    write(invocation, f"Go on:  cd {folder} && ksi plugin check && ksi plugin test")


def check_name(name: str) -> None:
    """Raise InvalidArgument where a plugin cannot be called so, AlreadyExists where one is."""
    if not _NAME.fullmatch(name):
        nearest = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")[:40]
        raise InvalidArgument(
            f"a plugin cannot be called {name!r}: 40 small letters, digits, underscores at most",
            hint=f"ksi plugin new {nearest}" if nearest else None,
            reason="bad_name",
        )
    if name in _TAKEN or keyword.iskeyword(name):
        raise InvalidArgument(f"a plugin cannot be called {name!r}: the word is taken", reason="bad_name")
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            whose = entry.dist.name if entry.dist else entry.value
            raise AlreadyExists(
                f"there is a plugin {name!r} in this environment already: it is of {whose}", reason="taken"
            )


def rendered(name: str) -> Iterator[tuple[str, str]]:
    """Give the files of a new plugin: path and text."""
    words: Mapping[str, str] = {
        "name": name,
        "package": f"ksi_{name}",
        "distribution": f"ksi-{name.replace('_', '-')}",
        "title": name.replace("_", " ").capitalize(),
        "ksi": ".".join(version(GROUP).split(".")[:2]),
    }
    template = files(__package__) / "template"
    for path, source in _files(template, ""):
        renamed = path.replace("package/", f"{words['package']}/", 1).replace("test_name", f"test_{name}")
        renamed = renamed.replace("gitignore", ".gitignore").removesuffix(".in")
        yield renamed, Template(source.read_text(encoding="utf-8")).substitute(words)


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".in"):
            yield f"{prefix}{entry.name}", entry
