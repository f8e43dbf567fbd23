#!/usr/bin/env python3
"""Write the pages of this folder from what a running daemon and the code declare.

python docs/reference/generate.py            writes them
python docs/reference/generate.py --check    changes nothing; exits with 1 where one is not up to date
"""

import argparse
import ast
import asyncio
import inspect
import json
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ksi_client.contract import breaking
from ksi_common.errors import ERRORS, KSIError
from ksi_common.messages import Message, public_name, spec_of
from ksi_common.schema import parameters
from ksi_completion.settings import CompletionSettings
from ksi_daemon import hookspecs
from ksi_daemon.catalog import Catalog
from ksi_daemon.logs import logging_to
from ksi_daemon.settings import LogSettings, Section, Settings
from ksi_daemon.testing import running_daemon

HERE = Path(__file__).resolve().parent
COMMAND = "python docs/reference/generate.py"
BREAKS = (
    "clients break: add in place of changing, or run this again with --breaking and say so in CHANGELOG.md"
)
NOTE = f"<!-- Written by `{COMMAND}`. Change the code, not this page. -->"

Discovery = Mapping[str, Any]
Help = Mapping[str, Any]


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description="Write the reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is old")
    parser.add_argument(
        "--breaking", action="store_true", help="write, though clients break; say so in the changelog"
    )
    options = parser.parse_args()
    check = options.check
    old = {name: text for name, text in pages().items() if text != _text(HERE / name)}
    broken = _broken(old.get("discovery.json"))
    if broken and not check and not options.breaking:
        sys.stderr.write("".join(f"{line}\n" for line in (*broken, BREAKS)))
        return 1
    if check and old:
        sys.stderr.write(f"not up to date: {', '.join(old)}; run {COMMAND}\n")
        return 1
    for name, text in old.items():
        (HERE / name).write_text(text)
    return 0


def _broken(new: str | None) -> Sequence[str]:
    """Name what the document promised, and does not any more."""
    promised = _text(HERE / "discovery.json")
    if new is None or promised is None:
        return []
    try:
        return breaking(json.loads(promised), json.loads(new))
    except ValueError:  # in the middle of a merge
        return []


def pages() -> Mapping[str, str]:
    """Make every page, by the name of its file."""
    discovery, catalog = asyncio.run(_discover())
    return {
        "events.md": events_page(discovery, catalog),
        "errors.md": errors_page(),
        "settings.md": settings_page(),
        "hooks.md": hooks_page(),
        "discovery.json": json.dumps(discovery, indent=1, sort_keys=True) + "\n",
    }


async def _discover() -> tuple[Discovery, Catalog]:
    """Ask a daemon with nothing but the built-in plugins."""
    with tempfile.TemporaryDirectory() as folder, logging_to(Path(folder) / "ksi.jsonl", LogSettings()):
        async with running_daemon(settings={"load_plugins": "none"}) as ksi:
            return await ksi.call_raw("system:discover"), ksi.daemon.catalog


# Events


def events_page(discovery: Discovery, catalog: Catalog) -> str:
    """Give a section for each event: those that can be sent, then those that are told."""
    lines = [
        *_title("Events", "Every event of the daemon and its built-in plugins. Yours: `ksi events ls`."),
        "The errors of an event are its handler's own; [those of the way to it](errors.md) may come as well.",
        "An example is complete as it stands: `nc -U` sends it. What Python imports is the class beside",
        "the plugin, of `ksi_common.events`. [Objects](#objects) in fields have sections of their own.",
        "",
    ]
    classes = [catalog.message_class(name) for name in (*catalog.routes, *catalog.notifications)]
    for namespace in sorted({*discovery["events"], *discovery["notifications"]}):
        lines += [f"## {namespace}", ""]
        for event in discovery["events"].get(namespace, ()):
            lines += _asked(event, catalog)
        for event in discovery["notifications"].get(namespace, ()):
            lines += _told(event, catalog)
    lines += ["## Objects", ""]
    for cls in sorted(_objects(filter(None, classes)), key=_short):
        lines += [f"### {_short(cls)}", "", *inspect.cleandoc(cls.__doc__ or "").splitlines(), ""]
        lines += _fields("Field", _parameters(cls), cls, default=False)
    return _page(lines)


def _asked(event: Help, catalog: Catalog) -> Iterator[str]:
    cls = catalog.message_class(event["event"])
    reply = spec_of(cls).reply if cls else None
    yield from _heading(event, ", ".join(_kinds(event)), cls)
    if event["deprecated"]:
        yield from (f"**Deprecated**: {event['deprecated']}.", "")
    yield from _fields("Field", event["parameters"], cls, default=True)
    if reply is not None:
        said = "Item" if event["kind"] == "stream" else "Reply"
        yield from _fields(said, _parameters(reply), reply, default=False)
    codes = ", ".join(f"`{code}`" for code in event["errors"]) or "none of its own"
    yield from (f"Errors: {codes}.", "", *_example(event))


def _told(event: Help, catalog: Catalog) -> Iterator[str]:
    cls = catalog.message_class(event["event"])
    yield from _heading(event, "notification: follow it", cls)
    yield from _fields("Field", event["parameters"], cls, default=False)
    yield from _example(event)


def _heading(event: Help, kinds: str, cls: type | None) -> Iterator[str]:
    imported = cls is not None and cls.__module__.startswith("ksi_common.events.")
    named = f", class `{_short(cls)}`" if cls is not None and imported else ""
    yield from (f"### {event['event']}", "", f"{kinds}; plugin `{event['plugin']}`{named}", "")
    yield from (*event["description"].splitlines(), "")


def _kinds(event: Help) -> Iterator[str]:
    yield event["kind"]
    if event["safe"]:
        yield "safe (changes nothing)"
    if event["idempotent"]:
        yield "idempotent"


def _fields(
    title: str, fields: Mapping[str, Mapping[str, Any]], cls: type | None, *, default: bool
) -> Iterator[str]:
    if not fields:
        return
    docs = _attribute_docs(cls)
    links = {name: " ".join(map(_link, kinds)) for name, kinds in _objects_of(cls).items()}
    columns = [title, "type", *(["default"] if default else []), "description"]
    rows = []
    for name, field in fields.items():
        value = "required" if field["required"] else f"`{json.dumps(field['default'])}`"
        kind = " ".join(filter(None, (_type(field), links.get(name))))
        rows.append([f"`{name}`", kind, *([value] if default else []), _described(name, field, docs)])
    yield from _table(columns, rows)


def _parameters(cls: type[BaseModel]) -> Mapping[str, Mapping[str, Any]]:
    return {name: field.model_dump() for name, field in parameters(cls).items()}


def _objects(classes: Iterable[type[Message]]) -> Set[type[BaseModel]]:
    """Find every model that is a field of a message, or of its reply, or of such a field."""
    found: set[type[BaseModel]] = set()
    waiting: list[type[BaseModel]] = []
    for cls in classes:
        reply = spec_of(cls).reply
        waiting += [cls, reply] if reply else [cls]
    while waiting:
        new = {kind for kinds in _objects_of(waiting.pop()).values() for kind in kinds} - found
        found |= new
        waiting += new
    return found


def _objects_of(cls: type | None) -> Mapping[str, Sequence[type[BaseModel]]]:
    """Give the models that fields are of, by the names of the fields on the wire."""
    fields = cls.model_fields if cls is not None and issubclass(cls, BaseModel) else {}
    return {public_name(name, info): list(_models(info.annotation)) for name, info in fields.items()}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _short(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _link(cls: type) -> str:
    return f"[`{cls.__name__}`](#{_short(cls).replace('.', '').lower()})"


def _type(field: Mapping[str, Any]) -> str:
    values = ", ".join(f"`{json.dumps(value)}`" for value in field["allowed_values"] or ())
    return f"{field['type']}: {values}" if values else str(field["type"])


def _described(name: str, field: Mapping[str, Any], docs: Mapping[str, str]) -> str:
    return str(field["description"]) or docs.get(name, "")


def _attribute_docs(cls: type | None) -> Mapping[str, str]:
    """Read the strings that stand below the fields of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__ if cls else ()):
        if issubclass(base, Message) and "[" not in base.__name__:  # Request[Found] has no source
            found.update(_own_docs(base))
    return found


def _own_docs(cls: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in pairwise(definition.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            yield field.target.id.removesuffix("_"), " ".join(str(text.value.value).split())


def _example(event: Help) -> Iterator[str]:
    yield from ("```json", json.dumps(event["examples"][0]), "```", "")


# Errors


def errors_page() -> str:
    """Give a row for each code."""
    rows = [
        [f"`{code}`", f"`{error.__name__}`", _summary(error), "yes" if error.retryable_by_default else "no"]
        for code, error in ERRORS.items()
    ]
    told = "What a request that is not answered as asked is answered with."
    rest = [
        "The classes are in `ksi_common.errors`. All are a `KSIError`, all but `InternalError` an",
        "`OperationalError`, and the same class is raised on both ends of the wire. `retryable` is what",
        "a frame says unless the handler knows better. Treat a code that you do not know as `INTERNAL`:",
        "new ones may come, none is renamed. `details.reason` is the machine's word for the case, `hint`",
        "says what to do.",
    ]
    return _page(
        [*_title("Errors", told), *_table(["code", "class", "meaning", "retryable"], rows), *rest, ""]
    )


def _summary(cls: type[KSIError]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


# Settings


def settings_page() -> str:
    """Give a row for each setting."""
    rest = [
        "The environment wins over `ksi.toml` beside `$KSI_HOME` (in a checkout: beside `var/`), that over",
        "`$XDG_CONFIG_HOME/ksi/config.toml`, that over `/etc/ksi/config.toml`. In the environment a table is",
        "written as JSON. A name in a file that is not listed here is refused when the daemon starts.",
        "",
        "Not in a file, because they say where the files are: `KSI_HOME` (data, socket, logs; in a checkout",
        "`var/`, where installed `~/.local/share/ksi/var`) and `KSI_SOCKET` (the socket alone; daemon and",
        "clients read it).",
    ]
    rows = [list(row) for row in settings()]
    table = _table(["setting", "environment", "default", "description"], rows)
    of_completion = _table(
        ["setting", "default", "description"],
        [list(row) for row in _nested("plugins.completion", CompletionSettings)],
    )
    own = [
        "## The plugin completion",
        "",
        "NAME is yours to choose; [providers](../providers.md) has examples.",
        "",
    ]
    title = _title("Settings", "Everything that can be set.")
    return _page([*title, *table, *rest, "", *own, *of_completion])


def settings() -> Iterator[tuple[str, str, str, str]]:
    """Give name, environment variable, default and description of each setting."""
    for name, info in Settings.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for key, inner in section.model_fields.items():
                yield _setting(f"{name}.{key}", inner)
        else:
            yield _setting(name, info)


def _nested(prefix: str, table: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Give name, default and description of each setting of a table, and of those in it."""
    for name, info in table.model_fields.items():
        below = f"{prefix}.{info.alias or name}"
        kinds = [info.annotation, *get_args(info.annotation)]
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not tables:
            default = info.get_default(call_default_factory=True)
            shown = "required" if info.is_required() else f"`{json.dumps(default, default=str)}`"
            yield f"`{below}`", shown, info.description or ""
        for kind in tables:
            several = {dict: ".NAME", list: "[]"}.get(get_origin(info.annotation) or object, "")
            yield from _nested(below + several, kind)


def _setting(name: str, info: FieldInfo) -> tuple[str, str, str, str]:
    variable = "KSI_" + name.upper().replace(".", "__")
    default = json.dumps(info.get_default(call_default_factory=True))
    return f"`{name}`", f"`{variable}`", f"`{default}`", info.description or ""


# Hooks


def hooks_page() -> str:
    """Give a section for each hook; its heading is its signature."""
    lines = [
        *_title("Hooks", "What a plugin may implement below `@handler` and `@subscriber`."),
        "Decorate a function of that name with `ksi_daemon.plugin.hookimpl`, and take the parameters that",
        "you need. One that the hook does not have refuses the plugin. `ksi call plugin:hooks` lists who",
        "implements what.",
        "",
    ]
    for name, spec in hooks().items():
        written = inspect.getsource(spec).partition("\n")[2].partition('"""')[0]
        signature = " ".join(written.partition("# type:")[0].split())
        lines += [f"## {heading(name)}", "", "```python", f"{signature} ...", "```", ""]
        lines += [*(inspect.getdoc(spec) or "").splitlines(), ""]
    return _page(lines)


def hooks() -> Mapping[str, Any]:
    """Give the hooks in the order written."""
    return {name: spec for name, spec in vars(hookspecs).items() if name.startswith("ksi_")}


def heading(name: str) -> str:
    """Write a hook as it is called."""
    return f"{name}({', '.join(inspect.signature(hooks()[name]).parameters)})"


# Markdown


def _title(title: str, summary: str) -> Sequence[str]:
    return [f"# {title}", "", NOTE, "", summary, ""]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _page(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
