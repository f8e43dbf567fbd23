"""The command that runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tests_that_a_script_starts_in_the_background_heed_ctrl_c() -> None:
    interrupted = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    program = (
        "import run_tests, subprocess, sys; run_tests.heed_ctrl_c(); "
        f"print(subprocess.run([sys.executable, '-c', {interrupted!r}], capture_output=True).returncode)"
    )
    done = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$0\" -c \"$1\"", sys.executable, program],
        cwd=ROOT, env={**os.environ, "KSI_NO_BOOTSTRAP": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "-2\n"
