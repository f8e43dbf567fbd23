"""A plugin that cannot be loaded is refused with one line; the rest go on."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from ksi_common.errors import NotFound
from ksi_common.events import event, state, system
from ksi_daemon.breadcrumb import Breadcrumb
from ksi_daemon.catalog import Catalog, Plugin
from ksi_daemon.explaining import explain
from ksi_daemon.hooks import Relay
from ksi_daemon.plugins import Loader, declared, modules_of, notifications_of


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """Forget the modules of plugins' files."""
    yield
    for name in [name for name in sys.modules if name.startswith("ksi_file_")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "plugins"
    made.mkdir()
    return made


def load(*folders: Path, only: Sequence[str] | None = (), suspects: Sequence[str] = ()) -> Catalog:
    """Load the plugins of folders, and the built-in ones."""
    catalog = Catalog()
    names = None if only is None else [*only]
    loader = Loader(catalog, Relay(), Breadcrumb(Path("/nowhere")), only=names, suspects=suspects)
    loader.load(folders[0] if folders else None, folders[1:])
    return catalog


def statuses(catalog: Catalog) -> dict[str, str]:
    return {name: plugin.status for name, plugin in catalog.plugins.items() if not plugin.builtin}


def raised(action: Callable[[], object]) -> BaseException:
    try:
        action()
    except BaseException as error:  # noqa: BLE001 -- SystemExit is among them
        return error
    raise AssertionError("it did not raise")


def foreign(source: str) -> BaseException:
    """Give what code of another file raises."""
    return raised(lambda: exec(compile(source, "/somewhere/theirs.py", "exec"), {}))


def test_an_error_of_ours_is_its_message() -> None:
    assert explain(NotFound("no such thing", reason="x")) == "no such thing"


def test_a_syntax_error_is_explained_with_its_place() -> None:
    assert explain(foreign("def f(:\n")) == "SyntaxError: invalid syntax (theirs.py:1)"


def test_a_syntax_error_of_no_file_is_explained_too() -> None:
    assert explain(SyntaxError("odd")) == "SyntaxError: odd"


def test_an_error_is_explained_with_the_place_in_foreign_code() -> None:
    assert explain(foreign("x = 1\nint('a')\n")).endswith("'a' (theirs.py:2)")


def test_an_error_of_several_lines_is_explained_in_one() -> None:
    assert explain(ValueError("first\nsecond")) == "ValueError: first"


def test_a_long_error_is_cut() -> None:
    assert len(explain(ValueError("x" * 10_000))) == 300


def test_an_error_without_a_word_is_explained_by_its_name() -> None:
    assert explain(SystemExit()) == "SystemExit"


def test_the_core_and_the_packages_are_loaded() -> None:
    catalog = load()
    assert {"system", "state", "events"} <= set(catalog.plugins)
    assert all(plugin.status == "loaded" for plugin in catalog.plugins.values() if plugin.builtin)


def test_files_are_loaded_by_their_names(folder: Path) -> None:
    (folder / "hello.py").write_text("x = 5\n")
    catalog = load(folder, only=None)
    plugin = catalog.plugins["hello"]
    assert (plugin.status, plugin.origin) == ("loaded", str(folder / "hello.py"))
    assert plugin.module is sys.modules["ksi_file_hello"]


def test_a_folder_that_is_not_there_has_no_plugins(tmp_path: Path) -> None:
    assert statuses(load(tmp_path / "nowhere", only=None)) == {}


@pytest.mark.parametrize("name", ["Hello.py", "my-plugin.py", "1st.py", "__init__.py"])
def test_a_file_of_another_name_is_refused_aloud(folder: Path, name: str) -> None:
    (folder / name).write_text("raise NotImplementedError\n")
    with capture_logs() as lines:
        assert statuses(load(folder, only=None)) == {name[:-3]: "refused"}
    assert [(line["event"], line["origin"]) for line in lines] == [("plugin.refused", str(folder / name))]


def test_a_file_whose_name_is_no_text_is_listed_as_text(folder: Path) -> None:
    (folder / os.fsdecode(b"bad\xff.py")).write_text("")
    catalog = load(folder, only=None)
    assert statuses(catalog) == {"bad?": "refused"}
    assert catalog.plugins["bad?"].origin == str(folder / "bad?.py")


@pytest.mark.parametrize("name", ["notes.txt", "hello.pyc", "package"])
def test_what_is_no_python_file_is_no_plugin(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    with capture_logs() as lines:
        assert statuses(load(folder, only=None)) == {}
    assert lines == []


def test_a_file_that_raises_is_refused_and_the_next_is_loaded(folder: Path) -> None:
    (folder / "bad.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "good.py").write_text("")
    with capture_logs() as lines:
        catalog = load(folder, only=None)
    assert statuses(catalog) == {"bad": "refused", "good": "loaded"}
    assert catalog.plugins["bad"].error == "SystemExit: 3 (bad.py:2)"
    assert [line["error"] for line in lines] == ["SystemExit: 3 (bad.py:2)"]
    assert "ksi_file_bad" not in sys.modules


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("given", ["plugins", "plugins/theirs.py"])
def test_a_file_of_another_user_is_refused_without_being_run(folder: Path, given: str) -> None:
    (folder / "theirs.py").write_text("raise SystemExit\n")
    os.chown(folder.parent / given, 65534, 65534)
    with capture_logs():
        plugin = load(folder, only=None).plugins["theirs"]
    assert plugin.status == "refused"
    assert plugin.error == f"{folder.parent / given} belongs to another user (uid 65534)"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_folder_that_settings_name_is_believed(folder: Path, tmp_path: Path) -> None:
    (folder / "theirs.py").write_text("")
    os.chown(folder / "theirs.py", 65534, 65534)
    assert load(tmp_path / "none", folder, only=None).plugins["theirs"].status == "loaded"


def test_a_hook_that_is_not_as_specified_refuses_its_plugin(folder: Path) -> None:
    (folder / "bad.py").write_text(
        "from ksi_daemon.plugin import hookimpl\n@hookimpl\ndef ksi_handler():\n    pass\n"
    )
    with capture_logs():
        catalog = load(folder, only=None)
    assert catalog.plugins["bad"].error == "there is no hook ksi_handler; did you mean ksi_handlers?"


def test_only_the_plugins_named_are_loaded_and_the_built_in(folder: Path) -> None:
    (folder / "a.py").write_text("")
    (folder / "b.py").write_text("raise NotImplementedError\n")
    catalog = load(folder, only=["a"])
    assert statuses(catalog) == {"a": "loaded"}
    assert "state" in catalog.plugins


def test_a_suspect_is_quarantined_without_being_imported(folder: Path) -> None:
    (folder / "bad.py").write_text("raise NotImplementedError\n")
    with capture_logs() as lines:
        catalog = load(folder, only=None, suspects=["bad"])
    assert statuses(catalog) == {"bad": "quarantined"}
    assert catalog.plugins["bad"].error == "it was running when the process crashed"
    assert [line["event"] for line in lines] == ["plugin.quarantined"]


def test_a_built_in_plugin_is_loaded_though_it_is_suspected() -> None:
    assert load(suspects=["state"]).plugins["state"].status == "loaded"


def test_a_second_plugin_of_a_name_is_refused_with_who_has_it(folder: Path) -> None:
    (folder / "state.py").write_text("raise NotImplementedError\n")
    with capture_logs() as lines:
        catalog = load(folder, only=None)
    assert catalog.plugins["state"].builtin
    assert [(line["plugin"], line["error"]) for line in lines] == [("state", "name taken by ksi_state")]
    assert statuses(catalog) == {f"state ({folder / 'state.py'})": "refused"}


def test_marked_functions_are_declared_in_the_order_written() -> None:
    def one() -> None: ...
    def two() -> None: ...
    def other() -> None: ...

    for function in (one, two):
        vars(function)["mark"] = True
    module = SimpleNamespace(two=two, other=other, one=one, again=two)
    assert declared(module, "mark") == [two, one]


def test_what_has_any_attribute_is_not_declared() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

    assert declared(SimpleNamespace(anything=Anything()), "mark") == []


def test_no_module_declares_nothing() -> None:
    assert declared(None, "mark") == []


def test_the_notifications_of_a_module_are_those_that_it_declares() -> None:
    found = list(notifications_of(["ksi_common.events.state", "ksi_common.events.event"]))
    assert set(found) == {state.Changed, state.Removed, state.NamespaceCleared, event.Swept}


def test_the_modules_of_a_plugin_are_its_own_and_those_of_what_it_handles() -> None:
    import ksi_state

    found = modules_of(ksi_state, [system.Health])
    assert {"ksi_state", "ksi_common.events.system"} <= set(found)
    assert not any(name.startswith("ksi_events") for name in found)


def test_a_plugin_is_loaded_until_it_is_refused() -> None:
    assert Plugin("shop", "shop.py").status == "loaded"
