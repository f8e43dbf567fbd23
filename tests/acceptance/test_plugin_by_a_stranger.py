"""Issue 7, Show 1: a stranger with KSI from a wheel makes a plugin, and it answers."""

import json
import re
import shutil
import socket

import pytest

from tests.support.stranger import ROOT, Stranger

HELLO = ROOT / "examples" / "plugins" / "ksi_hello"


@pytest.mark.timeout(600)
def test_a_stranger_makes_a_plugin_and_it_answers(stranger: Stranger) -> None:
    said = stranger.run("ksi", "plugin", "new", "weather")
    assert "cd ksi_weather && ksi plugin check" in said
    shutil.copytree(HELLO, stranger.folder / "ksi_hello")
    for name in ("weather", "hello"):
        folder = stranger.folder / f"ksi_{name}"
        # Not installed yet: both work all the same.
        assert "Nothing to mend." in stranger.run("ksi", "plugin", "check", "--strict", cwd=folder)
        assert "1 passed" in stranger.run("ksi", "plugin", "test", cwd=folder)
        stranger.run("pip", "install", "-q", "-e", ".[test]", cwd=folder)
        assert "1 passed" in stranger.run("pytest", cwd=folder)

    started = stranger.run("ksi", "daemon", "start")
    assert re.search(r"loaded \(.*hello.*weather\)", started)
    for name in ("weather", "hello"):
        assert stranger.run("ksi", "call", f"{name}:hello", "name=Ada").split() == ["text", "Hello,", "Ada!"]
        assert ask(stranger, f"{name}:hello")["data"] == {"text": "Hello, world!"}
        assert "Say hello to somebody." in stranger.run("ksi", "events", "show", f"{name}:hello")
        found = json.loads(stranger.run("ksi", "call", "system:discover", "--json"))
        assert [event["event"] for event in found["events"][name]] == [f"{name}:hello"]
        assert [event["event"] for event in found["notifications"][name]] == [f"{name}:greeted"]
    assert "there is a plugin 'weather' in this environment already" in stranger.run(
        "ksi", "plugin", "new", "weather", code=1
    )

    assert "Uninstalled ksi-weather" in stranger.run("ksi", "plugin", "uninstall", "weather")
    stranger.run("ksi", "plugin", "disable", "hello")
    stranger.run("ksi", "daemon", "restart")
    listed = stranger.run("ksi", "plugin", "ls")
    assert re.search(r"^hello\s+0\.1\.0\s+disabled", listed, re.MULTILINE)
    assert "weather" not in listed


def test_the_example_is_what_a_new_plugin_is() -> None:
    from ksi_client.cli.plugin.new import rendered

    made = dict(rendered("hello"))
    assert {path: (HELLO / path).read_text() for path in made} == made


def ask(stranger: Stranger, event: str) -> dict[str, dict[str, str]]:
    """Ask over the socket, with nothing between."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(stranger.home / "run" / "daemon.sock"))
        sock.sendall(json.dumps({"event": event, "data": {}}).encode() + b"\n")
        with sock.makefile("rb") as lines:
            answer: dict[str, dict[str, str]] = json.loads(lines.readline())
    return answer
