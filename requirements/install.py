"""Make the environment that bootstrap.py goes on in: standard library only, and nothing is put anywhere else.

It may be killed at any moment. The lock's file says something while the environment is half made, the stamp
is written last, and whoever comes next begins anew.
"""

import ast
import fcntl
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Final, TextIO

from bootstrap import PROFILES, PYTHON, ROOT, STAMP, VENV, facts, is_ready, read

INDEX_SETTINGS: Final = (
    *(
        "index-url",
        "extra-index-url",
        "no-index",
        "find-links",
        "trusted-host",
        "cert",
        "client-cert",
        "proxy",
    ),
    *("timeout", "default-timeout", "retries", "cache-dir", "no-cache-dir", "keyring-provider"),
    *("use-feature", "use-deprecated"),
)
"""What users may set for pip: how packages are reached, and nothing that says where they go."""

UV_SETTINGS: Final = (
    *("UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX", "UV_FIND_LINKS", "UV_OFFLINE", "UV_INSECURE_HOST"),
    *("UV_HTTP", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_KEYRING", "UV_CREDENTIALS", "UV_CONFIG_FILE"),
    *("UV_CACHE_DIR", "UV_NO_CACHE", "UV_LINK_MODE"),
)
"""The same for uv, as beginnings of its variables."""

EXTRAS: Final = ("litellm", "claude")
"""What only some need: each an environment of its own beside this one, so that none reaches the daemon's."""

NO_VENV: Final = "This Python has no venv/ensurepip. On Debian/Ubuntu: sudo apt install python3-venv"
ELSEWHERE: Final = "or name another place: KSI_VENV=PATH"


def make(profile: str) -> None:
    """Bring the environment up to date while nobody else does; where that cannot be, exit with a sentence."""
    try:
        Path(VENV).parent.mkdir(parents=True, exist_ok=True)
        with Path(VENV + ".lock").open("a+", encoding="utf-8") as lock:
            _take(lock, VENV)
            if not is_ready(profile):
                _build(profile, lock)
    except OSError as error:
        sys.exit(f"Cannot make {VENV}: {error}\n  Make that writable, {ELSEWHERE}")
    except KeyboardInterrupt:
        _say("\nStopped before the packages were there. The next start begins anew.\n")
        sys.exit(130)


def add(extra: str) -> None:
    """Make the environment of an extra, unless it is there; where that cannot be, exit with a sentence."""
    place, pins = Path(f"{sys.prefix}-{extra}"), _pins_of(extra)
    stamp, python = place / "ksi-stamp", place / "bin" / "python"
    try:
        with Path(f"{place}.lock").open("a+", encoding="utf-8") as lock:
            _take(lock, str(place))
            if read(str(stamp)) == f"{pins}\0{os.path.realpath(python)}" and python.exists():
                _say(f"{extra} is installed already, as {place} has it.\n")
                return
            count = len(re.findall(r"^[\w.-]+==", pins, re.MULTILINE))
            with _told(f"Installing {extra} into {place}, {count} pinned packages "):
                _run([sys.executable, "-I", "-m", "venv", "--without-pip", "--clear", str(place)], lock)
                _install_pins(pins, str(python), lock)
                stamp.write_text(f"{pins}\0{os.path.realpath(python)}", encoding="utf-8")
    except OSError as error:
        sys.exit(f"Cannot make {place}: {error}\n  Make that writable, {ELSEWHERE}")
    except KeyboardInterrupt:
        _say("\nStopped before the packages were there. The next time begins anew.\n")
        sys.exit(130)


def _pins_of(extra: str) -> str:
    """Give the part of providers.lock that is for one extra."""
    head, *parts = re.split(r"^# (\w+)\n", read(ROOT, "requirements", "providers.lock"), flags=re.MULTILINE)
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    return head + named[extra]


def _install_pins(pins: str, python: str, lock: TextIO) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(pins)
        file.flush()
        command, settings = _installer(python, lock)
        _run([*command, "--no-deps", "--require-hashes", "-r", file.name], lock, settings)


def _take(lock: TextIO, place: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"Another start is making {place}; waiting for it.\n")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _build(profile: str, lock: TextIO) -> None:
    made = read(STAMP).split("\0")
    wanted = facts(made[0] if made[0] in PROFILES[PROFILES.index(profile) :] else profile)
    lock.seek(0)
    anew = bool(lock.read()) or made[3:] not in (wanted[3:], [])  # half made, moved, or of another Python
    place, python = Path(VENV), Path(PYTHON)
    if not anew and not python.exists() and place.is_dir() and any(place.iterdir()):
        sys.exit(f"{VENV} is not empty, and no Python environment.\n  Remove it, {ELSEWHERE}")
    if not find_spec("venv"):
        sys.exit(NO_VENV)
    doing = "Making anew" if anew else "Updating" if made[0] else "First run: making"
    count = len(re.findall(r"^[\w.-]+==", wanted[1], re.MULTILINE))
    lock.write("half made\n")
    lock.flush()
    with _told(f"{doing} {VENV.removeprefix(ROOT + os.sep)} with {count} pinned packages "):
        if anew or not python.exists():
            made = [""]
            Path(STAMP).unlink(missing_ok=True)
            _run([sys.executable, "-I", "-m", "venv", "--without-pip", "--clear", VENV], lock)
        _install(made, wanted, lock)
        stamp = Path(STAMP + ".new")
        stamp.write_text("\0".join([*wanted[:4], os.path.realpath(PYTHON)]), encoding="utf-8")
        stamp.replace(STAMP)
        lock.truncate(0)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    begun = time.monotonic()
    _say(doing)
    try:
        yield
    except (OSError, SystemExit):  # a sentence follows
        _say("\n")
        raise
    _say(f" done ({time.monotonic() - begun:.0f} s)\n")


def _install(made: Sequence[str], wanted: Sequence[str], lock: TextIO) -> None:
    """Install what the stamp does not say is there: the pinned packages, the checkout."""
    command, settings = _installer(PYTHON, lock)
    if made[1:2] != wanted[1:2]:
        pins = f"{ROOT}/requirements/{wanted[0]}.lock"
        _run([*command, "--no-deps", "--require-hashes", "-r", pins], lock, settings)
    if made[2:4] != wanted[2:4]:
        _run([*command, "--no-deps", "--no-build-isolation", "-e", ROOT], lock, settings)


def _installer(python: str, lock: TextIO) -> tuple[Sequence[str], Mapping[str, str]]:
    """Choose uv, unless pip was told where packages are; else the environment's pip; else this Python's."""
    pip, uv = [sys.executable, "-P", "-m", "pip"], which("uv")
    if uv and not _index_settings(pip):
        return [uv, "pip", "install", "--python", python], _environ(only=UV_SETTINGS)
    if find_spec("ensurepip"):
        pip = [python, "-I", "-m", "pip"]
        _run([python, "-I", "-m", "ensurepip", "--default-pip"], lock)
    elif find_spec("pip"):
        pip += ["--python", python]
    else:
        sys.exit(NO_VENV)
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return [*pip, "install", "--no-input"], {**_index_settings(pip), **own}


def _index_settings(pip: Sequence[str]) -> dict[str, str]:
    """Read what pip's files and variables say of reaching packages, as variables."""
    settings = {}
    environ = _environ(
        without=("PYTHON", "PIP_USER", "PIP_GLOBAL", "PIP_SITE")
    )  # these would leave files out
    listed = subprocess.run(
        [*pip, "config", "list"], env=environ, capture_output=True, text=True, check=False
    ).stdout
    for section in ("global", "install", ":env:"):  # the last one counts
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", listed, re.MULTILINE):
            if name in INDEX_SETTINGS:
                settings["PIP_" + name.upper().replace("-", "_")] = ast.literal_eval(value)
    return settings


def _run(command: Sequence[str], lock: TextIO, settings: Mapping[str, str] | None = None) -> None:
    """Run a step, with a dot every 2 s; where it fails, exit with its reason."""
    environ = {**_environ(without=("PIP_", "UV_", "PYTHON")), **(settings or {})}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        # The child holds the lock too: should this program be killed, who waits for it waits for both.
        child = subprocess.Popen(
            command,
            env=environ,
            pass_fds=[lock.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        _wait_for(child)
        output.seek(0)
        said = output.read()
    if child.returncode:
        if "install" in command and not re.search("Installing collected packages|Failed to install", said):
            lock.truncate(0)  # no package was touched
        sys.exit(_reason(said or f"exit code {child.returncode}"))


def _environ(*, only: tuple[str, ...] = ("",), without: tuple[str, ...] = ()) -> dict[str, str]:
    """Give the variables whose names begin so, and not so."""
    chosen = (name for name in os.environ if name.startswith(only) and not name.startswith(without))
    return {name: os.environ[name] for name in chosen}


def _wait_for(child: subprocess.Popen[bytes]) -> None:
    try:
        while child.poll() is None:
            try:
                child.wait(2)
            except subprocess.TimeoutExpired:
                _say(".")
    finally:
        child.terminate()
        child.wait()


def _reason(said: str) -> str:
    """Say in a sentence why packages could not be installed."""
    changed = re.search(
        r"DO NOT MATCH THE HASHES.*?^ +(\S+)|Hash mismatch for `(.*?)`", said, re.DOTALL | re.MULTILINE
    )
    if changed:
        return (
            f"{changed[1] or changed[2]} is not the file that is pinned, and was not installed.\n"
            "  The lock was edited, or something between here and the index changes files."
        )
    told = re.findall(r"^ *(?:error|cause): (.+)", said, re.IGNORECASE | re.MULTILINE)
    told = told or said.strip().splitlines()
    broken = re.findall(r"connection broken by '(?:.*(?=\[Errno)|.*[:,] )(.+?)[')\"]*': ", said)
    return (
        f"Could not install the packages of KSI: {'; '.join([*told[-1:], *broken[-1:]])}\n"
        "  Is there a network, and an index that has them (pip config list)? Then start this again."
    )


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
