"""Go on in .venv, the environment beside this file that has the pinned packages, and make it where need be.

A program of the checkout begins with `bootstrap.enter()`. Where nothing is to be done, that reads three files
and imports nothing; otherwise requirements/install.py is at work. KSI_NO_BOOTSTRAP=1 leaves the environment
to who packages KSI, and KSI_VENV=PATH puts it elsewhere. Python 3.6 can read this file, and then say that it
is too old.
"""

import _signal  # type: ignore[import-not-found]  # what signal is made of, without all that it imports
import os
import sys

ROOT = os.path.dirname(os.path.realpath(__file__))
VENV = os.path.abspath(os.environ.get("KSI_VENV") or os.path.join(ROOT, ".venv"))
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "ksi-stamp")
PROFILES = ("run", "dev")  # each holds what is before it, at the same versions


def enter(profile: str = "run") -> None:
    """Return in an environment that has a profile's packages; the program may be started again in it.

    Ctrl-C ends the program at once until it says that it has ``imported``: what a module of C or Rust
    imports as it is loaded may not raise, or the process ends by SIGSEGV.
    """
    sys.excepthook = _say_unless_ctrl_c
    if not os.environ.get("KSI_NO_BOOTSTRAP"):
        _go_in(profile)
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # whoever began us may ignore it
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def imported() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again."""
    if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _go_in(profile: str) -> None:
    inside = os.path.realpath(sys.prefix) == os.path.realpath(VENV)
    if not is_ready(profile):
        outer = getattr(sys, "_base_executable", sys.executable)
        if inside and outer != sys.executable:
            _start_again_in(outer)  # what replaces an environment must not run from it
        _refuse_what_is_not_fit()
        from requirements.install import make

        make(profile)
    if not inside:
        _start_again_in(PYTHON)


def is_ready(profile: str) -> bool:
    """Tell whether the environment is what its stamp says, and the stamp what is wanted."""
    made = read(STAMP).split("\0")
    present = os.path.exists(PYTHON) and os.path.exists(os.path.join(VENV, "pyvenv.cfg"))
    return present and made[0] in PROFILES[PROFILES.index(profile) :] and made == facts(made[0])


def facts(profile: str) -> "list[str]":
    """Say what an environment is made of: profile, pins, project, checkout, Python. That is its stamp."""
    pins, project = read(ROOT, "requirements", profile + ".lock"), read(ROOT, "pyproject.toml")
    return [profile, pins, project, ROOT, os.path.realpath(PYTHON)]


def read(*path: str) -> str:
    """Read a file; give nothing where there is none."""
    try:
        with open(os.path.join(*path), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _say_unless_ctrl_c(kind: "type[BaseException]", error: BaseException, _: object) -> None:
    """Show what ends the program; at Ctrl-C, before it has begun, there is nothing to be shown."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, error.__traceback__)


def _refuse_what_is_not_fit() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):
        sys.exit(f"KSI needs Python 3.11 or newer; this is {version}. Try: python3.11 {' '.join(sys.argv)}")
    if not sys.platform.startswith("linux"):
        sys.exit(
            "KSI runs on Linux; on Windows, it does in WSL, elsewhere in a container or virtual machine."
        )


def _start_again_in(python: str) -> None:
    os.environ.pop("PYTHONHOME", None)  # it would hide the environment
    os.execv(python, [python, *getattr(sys, "orig_argv", ["", *sys.argv])[1:]])
