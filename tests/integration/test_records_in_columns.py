"""Our plugins keep their records in columns: no JSON but what is a user's own, and nothing in ``state:*``."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson
import pytest

from ksi_daemon.database.migrations import scripts
from ksi_daemon.testing import RunningDaemon, running_daemon
from tests.support.databases import rows

from .conftest import WritePlugin

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
USERS_OWN: Mapping[str, str] = {
    "state.value": "any JSON value that a user sets",
    "state.metadata": "what a user keeps beside it",
    "queue_items.value": "any JSON value that a user pushes",
    "completion_tools.tools": "what a user says of tools, passed on to the provider as it is",
    "completion_tools.response_schema": "a JSON schema of the user's",
    "completion_cache.answer": "a document of the provider's, given again as it was",
    "injections.metadata": "what a sender keeps beside it",
}
"""Columns that hold JSON because their content is not ours to take apart."""

KEEPER = """
    from collections.abc import Mapping
    from ksi_daemon.plugin import Bus, Database, Message, Request, handler, hookimpl
    from ksi_common.events.state import Set

    class Kept(Message):
        pass

    class Keep(Request[Kept], event="keeper:keep", recorded=False):
        '''Keep a thing as nobody should.'''

    @hookimpl
    def ksi_migrations() -> Mapping[int, str]:
        return {1: "CREATE TABLE things (id TEXT, facts TEXT,\\n    extra TEXT -- JSON\\n);"}

    @handler
    async def keep(request: Keep, database: Database, bus: Bus) -> Kept:
        row = ("a", '{"size": 3}')
        await database.write(lambda tx: tx.execute("INSERT INTO things (id, facts) VALUES (?, ?)", row))
        await bus.call(Set(namespace="keeper", key="a", value={"size": 3}))
        return Kept()
"""


async def use_everything(ksi: RunningDaemon) -> None:
    """Send the example of every event, and what leaves rows where examples do not."""
    async with ksi.connect() as wire:
        for data in ({"type": "person", "id": "a", "properties": {"n": 1}}, {"type": "person", "id": "b"}):
            await wire.call("state:entity:create", data)
        knows = {"type": "knows", "from": "a", "to": "b", "properties": {"since": 2020}}
        await wire.call("state:relationship:create", knows)
        found = (await wire.call("system:discover"))["data"]
        for events in found["events"].values():
            for event in events:
                if event["kind"] == "request" and event["event"] != "system:shutdown":
                    await wire.call(event["event"], event["examples"][0]["data"])


def plugin_tables(database: Path) -> dict[str, str]:
    """Give the definitions of the tables that plugins made, by name."""
    core = "\n".join(scripts("ksi_daemon.database").values())
    made = dict(rows(database, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    return {
        name: sql
        for name, sql in made.items()
        if not re.search(rf"CREATE TABLE {name}\b", core) and not name.startswith(("sqlite_", "schema_"))
    }


def json_columns(database: Path) -> Iterator[str]:
    """Name columns of plugins' tables that say they are JSON, or hold an object or an array."""
    for table, sql in plugin_tables(database).items():
        for name, declared in rows(database, f"SELECT name, type FROM pragma_table_info('{table}')"):
            said = re.search(rf"^ *{name} .*\bJSON\b", sql, re.MULTILINE)
            stored = declared in {"TEXT", "BLOB", "ANY", ""}
            held = rows(database, f"SELECT {name} FROM {table}") if stored else []
            if said or any(is_structure(value) for (value,) in held):
                yield f"{table}.{name}"


def is_structure(value: object) -> bool:
    if not isinstance(value, str | bytes):
        return False
    try:
        return isinstance(orjson.loads(value), dict | list)
    except orjson.JSONDecodeError:
        return False


def foreign_namespaces(database: Path) -> list[str]:
    """Name namespaces of ``state:*`` beside those that the examples of its own events name."""
    return [
        name
        for (name,) in rows(database, "SELECT DISTINCT namespace FROM state")
        if name not in {"global", "session"}
    ]


async def test_no_plugin_of_ours_keeps_json_that_should_be_columns() -> None:
    async with running_daemon(settings={"load_plugins": "none"}) as ksi:
        await use_everything(ksi)
        database = ksi.paths.database
        assert {"state", "completions", "entities", "entity_properties"} <= plugin_tables(database).keys()
        assert rows(database, "SELECT count(*) FROM entity_properties") > [(0,)]
        assert [column for column in json_columns(database) if column not in USERS_OWN] == []


async def test_no_plugin_of_ours_keeps_its_records_in_state() -> None:
    async with running_daemon(settings={"load_plugins": "none"}) as ksi:
        await use_everything(ksi)
        assert foreign_namespaces(ksi.paths.database) == []


async def test_a_plugin_that_does_either_is_found_out(write_plugin: WritePlugin) -> None:
    """The twin: what the two tests above look for is seen where it is."""
    async with running_daemon(plugins=[write_plugin(KEEPER, "keeper")]) as ksi:
        await ksi.call_raw("keeper:keep")
        database = ksi.paths.database
        found = [column for column in json_columns(database) if column not in USERS_OWN]
        assert found == ["things.facts", "things.extra"]
        assert foreign_namespaces(database) == ["keeper"]


@pytest.mark.parametrize("package", sorted(path.name for path in PLUGINS.glob("ksi_*")))
def test_a_package_of_ours_asks_for_state_only_if_it_is_the_one_of_state(package: str) -> None:
    asking = {
        path.name
        for path in (PLUGINS / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "ksi_common.events.state")
        or (isinstance(node, ast.Constant) and node.value in {"state:set", "state:session:update"})
    }
    assert bool(asking) == (package == "ksi_state")
