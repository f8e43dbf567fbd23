"""The prompt of a conversation on a terminal that is shared, as a shell shares it."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
EDITOR = """
import os, sys
from pathlib import Path
from ksi_client.chat.line_editor import LineEditor

with LineEditor(Path(sys.argv[1]), []) as editor:
    print("pid", os.getpid())
    while True:
        print("read", repr(editor.ask("you > ")))
"""
LEFT = "\x1b[D"
pytestmark = pytest.mark.skipif(not Path("/bin/sh").exists(), reason="there is no shell")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Terminal]:
    """Give a shell in which the editor has just been started."""
    program = tmp_path / "editor.py"
    program.write_text(EDITOR)
    environ = {"PS1": "$ ", "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with Terminal(["/bin/sh", "-i"], environ) as terminal:
        terminal.expect("$ ")
        terminal.enter(f"{sys.executable} {program} {tmp_path / 'history'}")
        terminal.expect_match("you > ")
        yield terminal


def test_after_ctrl_z_and_fg_the_line_is_there_and_can_be_edited(shell: Terminal) -> None:
    shell.type("unsent")
    shell.expect("unsent")
    shell.type("\x1a")
    shell.expect_match("[Ss]topped")
    shell.expect("$ ")
    shell.enter("fg")
    shell.expect("you > unsent")
    shell.enter(f"{LEFT}-")
    shell.expect("read 'unsen-t'")


def test_at_ctrl_z_the_shell_gets_a_terminal_that_ends_lines(shell: Terminal) -> None:
    shell.type("\x1a")
    shell.expect("$ ")
    shell.enter("stty -a")
    shell.expect_match(r"[^-]icrnl[^$]*[^-]icanon[^$]*[^-]echo ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_end_hands_the_terminal_back(shell: Terminal, number: signal.Signals) -> None:
    shell.type("unsent")
    shell.expect("unsent")
    os.kill(int(re.findall(r"pid (\d+)", shell.text)[-1]), number)
    shell.expect("$ ")
    shell.enter("echo code $?; stty -a")
    shell.expect(f"code {128 + number}")
    shell.expect_match(r"[^-]icrnl[^$]*[^-]icanon[^$]*[^-]echo ")


def test_a_paste_of_several_lines_is_one_line_that_is_read_at_enter(shell: Terminal) -> None:
    assert "\x1b[?2004h" in shell.raw  # asks the terminal to mark what is pasted
    shell.type("\x1b[200~one\rtwo\x1b[201~")
    shell.expect("two")
    shell.enter(", three")
    shell.expect(r"read 'one\ntwo, three'")


def test_a_dumb_terminal_gets_no_escapes(shell: Terminal) -> None:
    shell.type("\x03")
    shell.expect("$ ")
    seen = len(shell.raw)
    shell.enter(f"TERM=dumb {shell.text.split('$ ')[1].splitlines()[0]}")
    shell.expect("you > ")
    assert "\x1b" not in shell.raw[seen:]
