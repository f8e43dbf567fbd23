"""Every example runs, against a daemon of its own, and says what its reader is told."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ksi_client import AsyncClient
from ksi_common.errors import NotFound
from tests.support.daemon_process import DaemonProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SAYS = {
    "01_call.py": """\
the daemon is (healthy|degraded)
color is {'name': 'green', 'rgb': \\[0, 128, 0\\]}
found: False
NOT_FOUND: no plugin handles "state:gett" \\(did you mean state:get.*\\)
""",
    "02_subscribe.py": """\
state:changed 1
state:changed 2
back again
state:changed 3
state:changed 4
""",
    "03_publish.py": """\
stored at \\d+
deduplicated: True
version 1, and a second first one is refused: FAILED_PRECONDITION
1: shop:ordered {'item': 'tea'}
""",
    "04_consume.py": """\
packed tea
coffee is out, again later
(packed coffee
)?closing time
the next day, milk
dead letter: shop:ordered, there are none
""",
}


@pytest.fixture
async def daemon() -> AsyncIterator[DaemonProcess]:
    """A daemon with the plugins of examples/plugins."""
    process = DaemonProcess(measured=True)
    for plugin in (EXAMPLES / "plugins").glob("*.py"):
        process.add_plugin(plugin.stem, plugin.read_text())
    async with process:
        yield process


def test_every_example_has_its_words_here_and_is_short() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [script.name for script in scripts] == sorted(SAYS)
    everything = (*scripts, *(EXAMPLES / "plugins").glob("*.py"))
    assert [path.name for path in everything if path.read_text().count("\n") > 60] == []


@pytest.mark.timeout(240)
async def test_every_example_says_what_it_should(daemon: DaemonProcess) -> None:
    for name, says in SAYS.items():
        for _ in range(2):  # an example may be run again
            assert re.fullmatch(says, await run(name, daemon)), name


async def test_the_plugins_are_loaded_and_answer(daemon: DaemonProcess) -> None:
    async with AsyncClient(daemon.socket) as ksi:
        listed = {plugin["name"]: plugin for plugin in (await ksi.call_raw("plugin:list"))["plugins"]}
        assert {name: listed[name]["status"] for name in ("hello", "classic_hooks")} == {
            "hello": "loaded",
            "classic_hooks": "loaded",
        }
        assert await ksi.call_raw("hello:greet", {"name": "Ada"}) == {"text": "Hello, Ada!"}
        with pytest.raises(NotFound, match="classic:ping was not handled yet"):
            await ksi.call_raw("classic:count")
        assert (await ksi.call_raw("classic:ping", {"n": 1}))["pong"] == {"n": 1}
        assert await ksi.call_raw("classic:count") == {"event": "classic:ping", "count": 1}
        hooks = (await ksi.call_raw("plugin:inspect", {"plugin_name": "classic_hooks"}))["hooks"]
    assert sorted(hooks) == ["ksi_event_handled", "ksi_handle_event", "ksi_shutdown", "ksi_startup"]
    assert await daemon.stop() == 0
    log = [json.loads(line) for line in (daemon.home / "logs/daemon/ksi.jsonl").read_text().splitlines()]
    assert [line for line in log if str(line["event"]).endswith("events were handled")] != []


async def run(name: str, daemon: DaemonProcess) -> str:
    """Run an example as a reader would; give what it prints."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("KSI_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / name,
        env={**environ, "KSI_HOME": str(daemon.home)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said.decode()
