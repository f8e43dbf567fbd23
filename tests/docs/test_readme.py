"""The README is true: its Python compiles, its plugin answers, its commands say what they say there."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ksi_daemon.testing import running_daemon
from tests.support.daemon_process import DaemonProcess

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
CONSOLE = [text for language, text in BLOCKS if language == "console"]
SHELL = [text for language, text in BLOCKS if language == "sh"]

PATIENCE_S = 90.0
"""A net for a loaded machine: a model is loaded, and answers on one core."""
pytestmark = pytest.mark.timeout(300)

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
ENVIRON["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRON['PATH']}"


def block(word: str) -> str:
    """Give the one block of Python that has a word in it."""
    (found,) = [str(text) for text in PYTHON if word in text]
    return found


def commands(program: str) -> list[str]:
    """List the commands of the shell blocks that run a program, without their comments."""
    lines = (line.partition(" #")[0].strip() for text in SHELL for line in text.splitlines())
    return [line for line in lines if line.startswith(program)]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The plugins of the README, as files."""
    folder = tmp_path_factory.mktemp("plugins")
    files = {"hello": folder / "hello.py", "legacy": folder / "legacy.py"}
    files["hello"].write_text(block("hello:greet"))
    files["legacy"].write_text(block("legacy:ping"))
    return files


@pytest.fixture
async def daemon(plugins: Mapping[str, Path]) -> AsyncIterator[DaemonProcess]:
    process = DaemonProcess()
    for name, file in plugins.items():
        process.add_plugin(name, file.read_text())
    async with process:
        yield process


@pytest.mark.parametrize("source", PYTHON, ids=lambda source: source.splitlines()[0])
def test_the_python_compiles_and_what_it_imports_is_there(source: str) -> None:
    compile(source, "README.md", "exec")
    for line in source.splitlines():
        if line.startswith(("from ", "import ")):
            exec(line, {})


async def test_the_plugin_of_ten_lines_answers_as_written(plugins: Mapping[str, Path]) -> None:
    lines = [line for line in plugins["hello"].read_text().splitlines() if line.strip()]
    assert len(lines) <= 10
    async with running_daemon(plugins=[plugins["hello"]]) as ksi:
        assert await ksi.call_raw("hello:greet", {"name": "Ada"}) == {"text": "Hello, Ada!"}
        assert await ksi.call_raw("hello:greet") == {"text": "Hello, world!"}
        assert "hello" in (await ksi.call_raw("system:discover"))["namespaces"]


async def test_the_classic_hook_answers_as_written(plugins: Mapping[str, Path]) -> None:
    async with running_daemon(plugins=[plugins["legacy"]]) as ksi, ksi.connect() as wire:
        answer = await wire.call("legacy:ping", {"n": 1}, correlation_id="c-1")
        other = await wire.call("legacy:other")
    assert answer["data"] == {"pong": {"n": 1}, "correlation_id": "c-1"}
    assert other["error"]["code"] == "NOT_FOUND"


async def test_the_commands_of_the_quick_start_work(daemon: DaemonProcess) -> None:
    lines = commands("./ksi")
    assert len(lines) >= 6
    said = {line: run(line, daemon) for line in lines}
    assert "healthy" in said["./ksi status"]
    assert "queued" in said['./ksi call completion:async prompt="Say hi"']
    assert "state:set" in said["./ksi events ls"]
    assert "green" in said["./ksi sub 'state:*' --from-beginning --count 1"]
    if shutil.which("nc"):
        check_console(next(text for text in CONSOLE if "nc -U" in text), daemon)
    check_console(next(text for text in CONSOLE if "hello:greet" in text), daemon)


async def test_the_commands_that_ask_a_model_are_answered(daemon: DaemonProcess) -> None:
    lines = [line for program in ("python3 chat.py ", "date ", "tail ") for line in commands(program)]
    assert len(lines) == 5
    first, second, as_json, year, line = [run(line, daemon) for line in lines]
    assert ("Paris" in first, "Rome" in second) == (True, True)
    assert re.search(r"\b20\d\d\b", year)
    assert json.loads(as_json)["is_error"] is False
    assert json.loads(line)["ksi"]["outcome"] == "result"


async def test_the_function_that_asks_gives_what_it_prints(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_HOME", str(daemon.home))
    names: dict[str, Any] = {}
    exec(block("StreamCompletion"), names)
    answer = await asyncio.to_thread(names["ask"], "What is the capital of France?")
    assert "Paris" in answer
    assert capsys.readouterr().out == answer


def test_the_commands_that_manage_are_there() -> None:
    for line in (*commands("python3 daemon_control.py"), *commands("python3 run_tests.py")):
        _, program, *arguments = shlex.split(line)
        done = subprocess.run(
            [sys.executable, program, *arguments[:1], "--help"],
            cwd=ROOT, env=ENVIRON, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, line


def check_console(text: str, daemon: DaemonProcess) -> None:
    """Run the first line of a block; what it prints is the rest, where `…` stands for anything."""
    command, _, expected = text.removeprefix("$ ").partition("\n")
    pattern = ".*".join(re.escape(part) for part in words(expected).split("…"))
    said = words(run(command, daemon))
    assert re.fullmatch(pattern, said, re.DOTALL), said
    if expected.startswith("{"):
        json.loads(said)


def words(text: str) -> str:
    """Part words by one space: columns are aligned on a terminal, and parted by tabs in a pipe."""
    return " ".join(text.split())


def run(line: str, daemon: DaemonProcess) -> str:
    """Run a line in a shell, as a reader would, for a daemon of ours."""
    done = subprocess.run(
        ["sh", "-c", re.sub(r"(?<= )var/", f"{daemon.home}/", line)],
        cwd=ROOT, env={**ENVIRON, "KSI_HOME": str(daemon.home), "KSI_NO_BOOTSTRAP": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout
