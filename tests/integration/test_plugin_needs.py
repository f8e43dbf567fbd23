"""What plugins need of each other: who starts first, who cannot run, and what is said of it."""

from pathlib import Path

import pytest

from ksi_daemon.testing import RunningDaemon, running_daemon

from .conftest import LogFile, WritePlugin

HEAD = """
    from pathlib import Path
    from ksi_daemon.plugin import Message, Request, handler, hookimpl

    class Said(Message):
        text: str

    class Ask(Request[Said], event="{name}:ask", safe=True):
        '''Ask.'''

    @handler
    async def ask(request: Ask) -> Said:
        return Said(text="{name}")
"""


def plugin(write_plugin: WritePlugin, name: str, *declared: str) -> Path:
    return write_plugin(HEAD.format(name=name) + "".join(f"\n    {line}\n" for line in declared), name)


async def errors(ksi: RunningDaemon) -> dict[str, str]:
    listed = (await ksi.call_raw("plugin:list"))["plugins"]
    return {plugin["name"]: plugin["error"] for plugin in listed if plugin["status"] != "loaded"}


async def test_plugins_start_after_what_they_need_and_stop_before_it(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    said = f"""
    @hookimpl
    async def ksi_startup():
        with Path({str(trace)!r}).open("a") as file:
            file.write(f"+{{__name__[9:]}} ")

    @hookimpl
    async def ksi_shutdown():
        with Path({str(trace)!r}).open("a") as file:
            file.write(f"-{{__name__[9:]}} ")
    """
    needs = {"a": 'requires = ["c"]', "b": 'wants = ["d", "nobody"]', "c": 'requires = ["d"]', "d": ""}
    files = [
        write_plugin(HEAD.format(name=name) + said + f"\n    {line}\n", name) for name, line in needs.items()
    ]
    async with running_daemon(plugins=files) as ksi:
        assert await errors(ksi) == {}
    assert trace.read_text().split() == ["+d", "+c", "+a", "+b", "-b", "-a", "-c", "-d"]


async def test_plugins_that_need_each_other_are_refused_with_the_circle(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    files = [
        plugin(write_plugin, "egg", 'requires = ["hen"]'),
        plugin(write_plugin, "hen", 'requires = ["coop"]'),
        plugin(write_plugin, "coop", 'requires = ["egg"]'),
        plugin(write_plugin, "farm", 'requires = ["hen"]'),
        plugin(write_plugin, "field"),
    ]
    with log_file.written():
        async with running_daemon(plugins=files) as ksi:
            refused = await errors(ksi)
            assert await ksi.call_raw("field:ask") == {"text": "field"}
            async with ksi.connect() as wire:
                assert (await wire.call("hen:ask"))["error"]["code"] == "NOT_FOUND"
    circle = "plugins need each other: coop -> egg -> hen -> coop"
    assert refused == {
        "egg": circle, "hen": circle, "coop": circle,
        "farm": f"it needs hen, which cannot run: {circle}",
    }  # fmt: skip
    assert len(log_file.lines("plugin.refused")) == 4


async def test_a_plugin_that_needs_an_absent_one_is_refused_alone_with_the_way_to_it(
    write_plugin: WritePlugin,
) -> None:
    files = [
        plugin(write_plugin, "first", 'requires = ["second"]'),
        plugin(write_plugin, "second", 'requires = ["stat"]'),
        plugin(write_plugin, "third", 'wants = ["stat"]'),
    ]
    async with running_daemon(plugins=files) as ksi:
        refused = await errors(ksi)
        assert await ksi.call_raw("third:ask") == {"text": "third"}
    absent = "it needs stat; there is no plugin stat; did you mean state?"
    assert refused == {"first": f"it needs second, which cannot run: {absent}", "second": absent}


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ('requires = ["old>=2"]', "it needs old>=2, but old is 1.4"),
        ('requires = ["system>=99"]', "it needs system>=99, but system is "),
        ('requires = "old"', 'requires must be a list of names of plugins; write requires = ["state"]'),
        ('requires = ["old ~ 1"]', "requires has 'old ~ 1', which names no plugin"),
        ('ksi_api = "2"', "it is written for version 2 of the plugin API; this daemon has 1"),
    ],
)
async def test_a_need_that_is_not_met_refuses_its_plugin(
    write_plugin: WritePlugin, declared: str, says: str
) -> None:
    files = [plugin(write_plugin, "old", '__version__ = "1.4"'), plugin(write_plugin, "new", declared)]
    async with running_daemon(plugins=files) as ksi:
        refused = await errors(ksi)
        assert await ksi.call_raw("old:ask") == {"text": "old"}
    assert list(refused) == ["new"]
    assert says in refused["new"]


async def test_needs_that_are_met_are_met(write_plugin: WritePlugin) -> None:
    files = [
        plugin(write_plugin, "old", '__version__ = "1.4rc1"'),
        plugin(write_plugin, "new", 'requires = ["old>=1,<2", "state"]', "ksi_api = 1"),
    ]
    async with running_daemon(plugins=files) as ksi:
        assert await errors(ksi) == {}
        version = (await ksi.call_raw("plugin:inspect", {"plugin_name": "old"}))["version"]
        packaged = (await ksi.call_raw("plugin:inspect", {"plugin_name": "state"}))["version"]
        assert (version, packaged) == ("1.4rc1", ksi.daemon.lifecycle.version)


async def test_what_fails_at_its_start_takes_along_what_needs_it(write_plugin: WritePlugin) -> None:
    fails = """
    @hookimpl
    async def ksi_startup():
        raise OSError("no licence")
    """
    files = [
        write_plugin(HEAD.format(name="base") + fails, "base"),
        plugin(write_plugin, "above", 'requires = ["base"]'),
        plugin(write_plugin, "beside", 'wants = ["base"]'),
    ]
    async with running_daemon(plugins=files) as ksi:
        refused = await errors(ksi)
        namespaces = (await ksi.call_raw("system:discover"))["namespaces"]
    assert set(refused) == {"base", "above"}
    assert refused["above"].startswith("it needs base, which cannot run: OSError: no licence")
    assert {"above", "base"}.isdisjoint(namespaces)
    assert "beside" in namespaces


async def test_a_plugin_that_is_left_out_or_switched_off_is_said_to_be(write_plugin: WritePlugin) -> None:
    files = [
        plugin(write_plugin, "base"),
        plugin(write_plugin, "above", 'requires = ["base"]'),
    ]
    async with running_daemon(plugins=files, settings={"load_plugins": "above"}) as ksi:
        assert "base is not among those that load_plugins names" in (await errors(ksi))["above"]
    off = {"plugins": {"base": {"enabled": False}}}
    async with running_daemon(plugins=files, settings=off) as ksi:
        refused = await errors(ksi)
        assert (await ksi.call_raw("plugin:inspect", {"plugin_name": "base"}))["status"] == "disabled"
    assert refused["above"] == "it needs base, which is disabled: it is switched off in the settings"


async def test_a_plugin_is_switched_off_by_the_environment(
    write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_PLUGINS__BASE__ENABLED", "false")
    async with running_daemon(plugins=[plugin(write_plugin, "base")]) as ksi:
        assert (await ksi.call_raw("plugin:inspect", {"plugin_name": "base"}))["status"] == "disabled"
        assert (await ksi.call_raw("system:health"))["checks"]["plugins"]["status"] == "healthy"


SETTINGS = """
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: str = "Berlin"
        days: int = 3

    class Show(Request[Said], event="weather:show", safe=True):
        '''Show the settings.'''

    @hookimpl
    def ksi_settings():
        return Weather

    @handler
    async def show(request: Show, settings: Weather) -> Said:
        return Said(text=f"{settings.city} {settings.days}")
"""


@pytest.mark.parametrize(
    ("table", "says"),
    [({}, "Berlin 3"), ({"city": "Oslo", "enabled": True}, "Oslo 3"), ({"days": "5"}, "Berlin 5")],
)
async def test_a_plugin_has_its_table_as_its_model(
    write_plugin: WritePlugin, table: dict[str, object], says: str
) -> None:
    file = write_plugin(HEAD.format(name="weather") + SETTINGS, "weather")
    async with running_daemon(plugins=[file], settings={"plugins": {"weather": table}}) as ksi:
        assert await ksi.call_raw("weather:show") == {"text": says}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"citty": "Oslo"}, 'there is no setting "plugins.weather.citty"; did you mean "city"?'),
        ({"x": 1}, 'there is no setting "plugins.weather.x"; it has city, days'),
        ({"days": "many"}, "setting plugins.weather.days: Input should be a valid integer"),
    ],
)
async def test_a_table_that_does_not_fit_refuses_its_plugin(
    write_plugin: WritePlugin, table: dict[str, object], says: str
) -> None:
    file = write_plugin(HEAD.format(name="weather") + SETTINGS, "weather")
    async with running_daemon(plugins=[file], settings={"plugins": {"weather": table}}) as ksi:
        assert says in (await errors(ksi))["weather"]


async def test_a_table_of_no_plugin_is_warned_of_with_a_guess(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    tables = {"plugins": {"baze": {"x": 1}}}
    with log_file.written():
        async with running_daemon(plugins=[plugin(write_plugin, "base")], settings=tables) as ksi:
            assert await errors(ksi) == {}
    (line,) = log_file.lines("settings.of_no_plugin")
    assert line["hint"] == "there is no plugin baze; did you mean base?"
