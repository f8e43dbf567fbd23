"""The environment of a checkout, whatever happens while it is made: real Pythons, pip and uv."""

import ast
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.scale import FULL, scaled
from tests.support.tiny_checkout import PATIENCE_S, PYTHON, ROOT, TOTAL, UV, TinyCheckout

FIRST = re.compile(r"First run: making \.venv with 2 pinned packages \.* done \(\d+ s\)\n")
OLDER = [f"python3.{minor}" for minor in range(6, 11)]
pytestmark = pytest.mark.timeout(300)  # a net: pip takes seconds, more on a loaded machine


@pytest.fixture
def checkout(tmp_path: Path) -> TinyCheckout:
    return TinyCheckout(tmp_path)


def runs(python: str) -> bool:
    """Tell whether a command is a Python, and not only the shim of one."""
    found = shutil.which(python)
    return (
        bool(found)
        and subprocess.run([str(found), "-c", ""], capture_output=True, check=False).returncode == 0
    )


def pretending(*statements: str, program: str = "main.py") -> Sequence[str]:
    """Give Python's arguments for a program in a process where something is not as it is."""
    lines = ["import runpy, sys", *statements, f"sys.argv = [{program!r}, 'start']", "sys.path[0] = '.'"]
    return ["-c", "; ".join([*lines, f"runpy.run_path({program!r}, run_name='__main__')"])]


def ends_well(done: subprocess.CompletedProcess[str], venv: Path) -> bool:
    return done.stdout.startswith(f"{venv} wide {TOTAL} tiny ") and done.returncode == 0


def test_of_two_first_starts_one_makes_the_environment_with_pip_and_both_go_on_in_it(
    checkout: TinyCheckout,
) -> None:
    environ = checkout.environ(uv=False)
    with checkout.start("main.py", "a", "-b c", environ=environ) as first:
        assert first.stdout is not None
        assert first.stderr is not None
        begun = first.stderr.read(len("First run"))  # it has the lock
        os.killpg(first.pid, signal.SIGSTOP)  # until the other one has come
        with checkout.start(environ=environ) as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            os.killpg(first.pid, signal.SIGCONT)
            answer, rest = second.communicate(timeout=PATIENCE_S)
        stdout, stderr = first.stdout.read(), begun + first.stderr.read()
    assert ends_well(subprocess.CompletedProcess([], first.returncode, stdout), checkout.venv)
    assert "args ['a', '-b c']" in stdout
    assert FIRST.fullmatch(stderr)
    assert ends_well(subprocess.CompletedProcess([], second.returncode, answer), checkout.venv)
    assert waiting + rest == f"Another start is making {checkout.venv}; waiting for it.\n"
    third = checkout.run(environ=environ)
    assert ends_well(third, checkout.venv)
    assert third.stderr == ""


def test_a_first_start_uses_uv_where_it_is_found(checkout: TinyCheckout) -> None:
    first = checkout.run()
    assert ends_well(first, checkout.venv), first
    assert FIRST.fullmatch(first.stderr)
    assert [path.read_text() for path in checkout.files("wide-1.0.dist-info/INSTALLER")] == ["uv"]


def test_where_nothing_is_to_be_done_nothing_is_imported(checkout: TinyCheckout) -> None:
    checkout.run()
    assert checkout.run().stdout.endswith(" new ['bootstrap']\n")


def test_tests_add_what_is_missing_and_serve_the_program_too(checkout: TinyCheckout) -> None:
    checkout.run()
    before = [path.stat() for path in checkout.files("wide/*.py")]
    tests = checkout.run("tests.py")
    assert ends_well(tests, checkout.venv)
    assert tests.stderr.startswith("Updating .venv with 3 pinned packages ")
    assert len(list(checkout.files("checker.py"))) == 1
    assert [path.stat() for path in checkout.files("wide/*.py")] == before
    assert checkout.run().stderr == ""


def test_a_changed_lock_or_project_is_brought_up_to_date(checkout: TinyCheckout) -> None:
    checkout.run()
    newer = checkout.pin("builder", {"builder.py": "raise ImportError\n"}, "2.0")
    checkout.lock(checkout.run_pins.splitlines(keepends=True)[0] + newer, checkout.dev_pins)
    pins = checkout.run()  # without building the checkout again, which this builder could not
    assert ends_well(pins, checkout.venv)
    assert pins.stderr.startswith("Updating .venv ")
    checkout.lock(checkout.run_pins, checkout.dev_pins)
    checkout.set_version("1.1")
    assert "tiny 1.1" in checkout.run().stdout


def test_a_moved_checkout_is_made_anew(checkout: TinyCheckout) -> None:
    checkout.run("tests.py")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    moved = checkout.run()
    assert ends_well(moved, checkout.venv)
    assert moved.stderr.startswith("Making anew .venv with 3 pinned packages ")
    (path,) = checkout.files("tiny.pth")
    assert path.read_text() == str(checkout.folder)


def test_an_environment_whose_python_is_gone_is_made_anew(checkout: TinyCheckout) -> None:
    checkout.run()
    python = checkout.venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert ends_well(checkout.run(), checkout.venv)


def test_an_outdated_environment_is_replaced_from_outside_when_a_program_runs_in_it(
    checkout: TinyCheckout,
) -> None:
    checkout.run()
    checkout.set_version("1.1")
    (checkout.folder / ".venv.lock").write_text("half made\n")
    inside = subprocess.run(
        [checkout.venv / "bin" / "python", "main.py"],
        cwd=checkout.folder, env=checkout.environ(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ends_well(inside, checkout.venv)
    assert inside.stderr.startswith("Making anew ")


def test_an_environment_that_a_user_made_is_filled_and_not_replaced(checkout: TinyCheckout) -> None:
    subprocess.run([UV, "venv", "--quiet", "--python", PYTHON, checkout.venv], check=True)
    kept = checkout.venv / "kept"
    kept.write_text("by a user")
    assert ends_well(checkout.run(), checkout.venv)
    assert kept.exists()


@pytest.mark.parametrize("uv", [True, False], ids=["uv", "pip"])
def test_killed_at_any_moment_the_next_start_ends_well(checkout: TinyCheckout, *, uv: bool) -> None:
    """Only the program is killed, or all that it has started; in the first case the next one waits."""
    chance = random.Random(1)
    longest = 1.0 if uv else 5.0  # seconds, about what it takes
    for round_ in range(scaled(2, 10)):
        program = ("main.py", "tests.py")[round_ % 2]
        with checkout.start(program, environ=checkout.environ(uv=uv)) as process:
            try:
                process.communicate(timeout=chance.uniform(0, longest))
            except subprocess.TimeoutExpired:
                (os.killpg if round_ % 3 else os.kill)(process.pid, signal.SIGKILL)
        if uv:
            assert ends_well(checkout.run(environ=checkout.environ()), checkout.venv)
            shutil.rmtree(checkout.venv)
    assert ends_well(checkout.run("tests.py"), checkout.venv)
    assert (checkout.folder / ".venv.lock").read_text() == ""


def test_what_was_left_half_made_is_made_anew(checkout: TinyCheckout) -> None:
    with checkout.start(environ=checkout.environ(uv=False)) as killed:
        assert killed.stderr is not None
        assert killed.stderr.read(9) == "First run"
        os.killpg(killed.pid, signal.SIGKILL)
    (checkout.venv / "left").mkdir(parents=True)
    done = checkout.run()
    assert ends_well(done, checkout.venv)
    assert done.stderr.startswith("Making anew .venv with 2 pinned packages ")
    assert not (checkout.venv / "left").exists()


def test_who_waited_for_one_that_failed_makes_it(checkout: TinyCheckout) -> None:
    with (checkout.folder / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with checkout.start(environ=checkout.environ()) as waiting:
            assert waiting.stderr is not None
            assert waiting.stderr.readline().startswith("Another start is making ")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert FIRST.fullmatch(waiting.stderr.read())
    assert waiting.returncode == 0


def test_ctrl_c_ends_it_with_a_sentence(checkout: TinyCheckout) -> None:
    with checkout.start(environ=checkout.environ(uv=False)) as process:
        assert process.stderr is not None
        assert process.stderr.read(9) == "First run"
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.endswith("\nStopped before the packages were there. The next start begins anew.\n")
    assert "Traceback" not in said
    assert ends_well(checkout.run(), checkout.venv)


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 2), (3, 10, 13)])
def test_a_python_that_is_too_old_says_so(checkout: TinyCheckout, version: tuple[int, int, int]) -> None:
    old = checkout.run(*pretending(f"sys.version_info = {version}"))
    assert old.returncode == 1
    number = ".".join(map(str, version))
    assert old.stderr == f"KSI needs Python 3.11 or newer; this is {number}. Try: python3.11 main.py start\n"
    assert not checkout.venv.exists()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_a_system_that_is_not_linux_is_told_so_before_anything_is_made(
    checkout: TinyCheckout, platform: str
) -> None:
    refused = checkout.run(*pretending(f"sys.platform = {platform!r}"))
    assert refused.returncode == 1
    assert refused.stderr.startswith("KSI runs on Linux;")
    assert not checkout.venv.exists()


def test_an_older_python_can_read_what_tells_it_so(checkout: TinyCheckout) -> None:
    older = next(filter(runs, OLDER), None)
    if not older:
        pytest.skip("no older Python here")
    old = subprocess.run([older, "main.py"], cwd=checkout.folder, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"KSI needs Python 3\.11 or newer; this is 3\.\d+\.\d+\. Try: .*\n", old.stderr)


@pytest.mark.parametrize("name", ["ksi", *(path.name for path in ROOT.glob("*.py"))])
def test_what_an_older_python_must_read_it_can_read(name: str) -> None:
    ast.parse((ROOT / name).read_text(), feature_version=(3, 6))


def test_without_ensurepip_the_pip_of_this_python_installs(checkout: TinyCheckout) -> None:
    done = checkout.run(*pretending("sys.modules['ensurepip'] = None"), environ=checkout.environ(uv=False))
    assert ends_well(done, checkout.venv), done
    assert list(checkout.files("pip")) == []


@pytest.mark.parametrize("missing", [("ensurepip", "pip"), ("venv",)], ids=" ".join)
def test_without_venv_or_any_pip_it_says_what_to_install(
    checkout: TinyCheckout, missing: Sequence[str]
) -> None:
    hidden = [f"sys.modules[{name!r}] = None" for name in missing]
    done = checkout.run(*pretending(*hidden), environ=checkout.environ(uv=False))
    assert done.returncode == 1
    assert done.stderr.endswith(
        "This Python has no venv/ensurepip. On Debian/Ubuntu: sudo apt install python3-venv\n"
    )
    assert ends_well(checkout.run(), checkout.venv)


def test_without_a_network_it_gives_the_reason_and_ends_well_when_there_is_one(
    checkout: TinyCheckout,
) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "1"}
    environ = {**checkout.environ(uv=False), **nowhere}
    del environ["PIP_NO_INDEX"], environ["PIP_FIND_LINKS"]
    done = checkout.run(environ=environ)
    assert done.returncode == 1
    assert done.stderr.partition("\n")[2] == (
        "Could not install the packages of KSI: No matching distribution found for wide==1.0; "
        "[Errno 111] Connection refused\n"
        "  Is there a network, and an index that has them (pip config list)? Then start this again.\n"
    )
    assert ends_well(checkout.run(), checkout.venv)


def test_what_runs_goes_on_running_where_tests_cannot_be_set_up(checkout: TinyCheckout) -> None:
    checkout.run()
    (checkout.wheels / "checker-1.0-py3-none-any.whl").unlink()
    for _ in range(2):
        assert "checker" in checkout.run("tests.py").stderr
        again = checkout.run()
        assert ends_well(again, checkout.venv)
        assert again.stderr == ""


@pytest.mark.parametrize("uv", [True, False], ids=["uv", "pip"])
def test_a_package_that_is_not_the_pinned_one_is_not_installed(checkout: TinyCheckout, *, uv: bool) -> None:
    checkout.pin("wide", {"wide.py": "print('evil')\n"})
    done = checkout.run(environ=checkout.environ(uv=uv, UV_NO_VERIFY_HASHES="1", UV_CONSTRAINT="/nowhere"))
    assert done.returncode == 1
    assert done.stderr.partition("\n")[2] == (
        "wide==1.0 is not the file that is pinned, and was not installed.\n"
        "  The lock was edited, or something between here and the index changes files.\n"
    )
    assert list(checkout.files("wide*")) == []


def test_what_this_platform_has_no_wheel_of_is_left_out(checkout: TinyCheckout) -> None:
    other = f"engine==1.0 ; sys_platform == 'nowhere' --hash=sha256:{'0' * 64}\n"
    checkout.lock(checkout.run_pins + other, checkout.dev_pins)
    assert ends_well(checkout.run(), checkout.venv)


def test_no_setting_of_the_user_leads_out_of_the_checkout(checkout: TinyCheckout, tmp_path: Path) -> None:
    """While those that say where packages are count, in pip's own file too: so it is pip that installs."""
    away = tmp_path / "away"
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nno-index = true\nfind-links =\n    {tmp_path}\n    {checkout.wheels}\n"
        f"[install]\ntarget = {away}\n"
    )
    environ = checkout.environ(
        PIP_CONFIG_FILE=str(config), PIP_USER="1", PIP_PREFIX=str(away), PIP_ROOT=str(away),
        PYTHONUSERBASE=str(away), PYTHONPATH=str(away), PIP_CONSTRAINT=str(away), VIRTUAL_ENV=str(away),
    )  # fmt: skip
    assert ends_well(checkout.run(environ=environ), checkout.venv)
    assert not away.exists()
    assert [path.name for path in checkout.home.iterdir() if path.name != ".cache"] == []
    assert [path.read_text() for path in checkout.files("wide-1.0.dist-info/INSTALLER")] == ["pip\n"]


def test_a_checkout_that_cannot_be_written_says_so(checkout: TinyCheckout) -> None:
    powerless: list[str] = []
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root writes anywhere, and there is no setpriv")
        powerless = ["setpriv", "--bounding-set=-dac_override"]
    checkout.folder.chmod(0o555)
    try:
        done = subprocess.run(
            [*powerless, PYTHON, "main.py"],
            cwd=checkout.folder, env=checkout.environ(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        checkout.folder.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == (
        f"Cannot make {checkout.venv}: [Errno 13] Permission denied: '{checkout.venv}.lock'\n"
        "  Make that writable, or name another place: KSI_VENV=PATH\n"
    )


def test_the_environment_may_be_elsewhere(checkout: TinyCheckout, tmp_path: Path) -> None:
    place = tmp_path / "some" / "place"
    assert ends_well(checkout.run(environ=checkout.environ(KSI_VENV=str(place))), place)
    assert not checkout.venv.exists()


def test_a_folder_of_other_things_is_left_alone(checkout: TinyCheckout, tmp_path: Path) -> None:
    (tmp_path / "home" / "letter").write_text("dear")
    done = checkout.run(environ=checkout.environ(KSI_VENV=str(tmp_path / "home")))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'home'} is not empty, and no Python environment.\n")
    assert (tmp_path / "home" / "letter").read_text() == "dear"


def test_an_extra_comes_into_an_environment_of_its_own_and_once(checkout: TinyCheckout) -> None:
    first = checkout.run("add.py", "litellm")
    assert first.returncode == 0, first.stderr
    assert f"Installing litellm into {checkout.venv}-litellm, 1 pinned packages " in first.stderr
    assert list(extra(checkout, "litellm", "*.py")) == ["talker.py"]
    assert not list(checkout.files("talker.py")), "the daemon's environment has it not"
    again = checkout.run("add.py", "litellm")
    assert (again.returncode, again.stderr) == (
        0,
        f"litellm is installed already, as {checkout.venv}-litellm has it.\n",
    )
    assert checkout.run().stderr == "", "and stays as it was"


def test_an_extra_whose_pins_changed_is_made_anew(checkout: TinyCheckout) -> None:
    checkout.run("add.py", "claude")
    newer = checkout.pin("dancer", {"dancer.py": ""})
    checkout.lock_extras(litellm="", claude=newer)
    assert checkout.run("add.py", "claude").returncode == 0
    assert list(extra(checkout, "claude", "*.py")) == ["dancer.py"]


def test_an_extra_that_is_not_what_is_pinned_is_not_installed_and_may_be_tried_again(
    checkout: TinyCheckout,
) -> None:
    wheel = checkout.wheels / "talker-1.0-py3-none-any.whl"
    pinned = wheel.read_bytes()
    checkout.pin("talker", {"talker.py": "SAYS = 'evil'\n"})
    refused = checkout.run("add.py", "litellm")
    assert refused.returncode == 1
    assert "is not the file that is pinned, and was not installed" in refused.stderr
    assert not list(extra(checkout, "litellm", "talker.py"))
    wheel.write_bytes(pinned)
    assert checkout.run("add.py", "litellm").returncode == 0
    assert list(extra(checkout, "litellm", "talker.py")) == ["talker.py"]


def extra(checkout: TinyCheckout, name: str, pattern: str) -> list[str]:
    """List what was installed for an extra."""
    folder = Path(f"{checkout.venv}-{name}")
    return sorted(path.name for path in folder.glob(f"lib/python*/site-packages/{pattern}"))


def test_packagers_can_do_without(checkout: TinyCheckout) -> None:
    done = checkout.run(environ=checkout.environ(KSI_NO_BOOTSTRAP="1"))
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'wide'\n")
    assert not checkout.venv.exists()


@pytest.mark.skipif(not FULL, reason="needs an index of all packages: run_tests.py --all")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
@pytest.mark.timeout(300)
def test_a_fresh_clone_is_set_up_from_the_real_locks(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KSI_")}
    for said in (
        re.compile(r"First run: making \.venv with \d+ pinned packages \.* done \(\d+ s\)\n"),
        re.compile(""),
    ):
        done = subprocess.run(
            [PYTHON, "daemon_control.py", "status"],
            cwd=clone, env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done
        assert said.fullmatch(done.stderr), done.stderr


PRESS = """
import os, signal, sys

class Press:
    def find_spec(self, name, *_):
        if "orjson" in sys.modules and not name.startswith("orjson"):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
"""


@pytest.mark.parametrize("program", ["ksi", "chat.py", "daemon_control.py"])
def test_ctrl_c_in_the_middle_of_a_module_of_rust_ends_it(program: str, tmp_path: Path) -> None:
    """That module crashes where what it imports raises KeyboardInterrupt."""
    run = f"{PRESS}import runpy; runpy.run_path({program!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=ROOT, env={**os.environ, "KSI_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [("KeyboardInterrupt", -signal.SIGINT, ""), ("ValueError('odd')", 1, "ValueError: odd")],
)
def test_ctrl_c_while_a_program_still_imports_shows_no_traceback(end: str, code: int, says: str) -> None:
    program = f"import bootstrap; bootstrap.enter('dev'); raise {end}"
    done = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip().rpartition("\n")[2]) == (code, says)
