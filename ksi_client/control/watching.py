"""``start --reload``: start the daemon again whenever code of a plugin, or of KSI in a checkout, changes."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ksi_client.control.starting import START_S, start
from ksi_client.control.stopping import stop
from ksi_client.control.wording import Exit, Outcome, Tell, duration
from ksi_client.raw import call_raw
from ksi_common.errors import FailedPrecondition, KSIError
from ksi_common.paths import Paths

if TYPE_CHECKING:
    from watchfiles import Change

SETTLED_MS: Final = 20
"""Nothing more is written for so long: an editor is done."""
TURN_MS: Final = 500
"""Between two looks at nothing; the first says that changes are heard of from now on."""
CODE: Final = (".toml", ".sql", ".json")
"""What is watched besides Python."""

Changes = Iterator[set[tuple["Change", str]]]


def keep_reloading(paths: Paths, *, timeout_s: float = START_S, tell: Tell) -> Outcome:
    """Start the daemon, and again after each change, until Ctrl-C, which stops it.

    A file that is no Python leaves the daemon as it is. One that cannot be loaded costs its plugin only.
    """
    folders = watched(paths)
    changes = _watch(folders)
    # Nothing is left of a module's old text: two changes within a second may have the same size.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    started = start(paths, timeout_s=timeout_s)
    if started.code != Exit.OK:
        return started
    tell(f"{started.text}\nWatching {', '.join(map(str, folders))}; Ctrl-C stops.\n")
    try:
        for changed in changes:
            if changed:
                _reload(paths, sorted({Path(file) for _, file in changed}), timeout_s, tell)
    except KeyboardInterrupt:
        tell("\n")
    return stop(paths, tell=tell)


def watched(paths: Paths) -> Sequence[Path]:
    """List the folders whose code the daemon runs, but for what is installed for good."""
    paths.plugins.mkdir(parents=True, exist_ok=True)
    named = [Path(part) for part in os.environ.get("KSI_PLUGINS_DIR", "").split(os.pathsep) if part]
    modules = ("ksi_common", "ksi_daemon", *(entry.module for entry in entry_points(group="ksi")))
    found = [paths.plugins, *named, *_packages(module.partition(".")[0] for module in modules)]
    folders = list(dict.fromkeys(folder.resolve() for folder in found if folder.is_dir()))
    return [
        folder for folder in folders if not any(other in folder.parents for other in folders)
    ]  # what is within another is watched with it


def _packages(names: Iterable[str]) -> Iterator[Path]:
    for name in dict.fromkeys(names):
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            if "site-packages" not in Path(place).parts:
                yield Path(place)


def _watch(folders: Sequence[Path]) -> Changes:
    """Begin to watch; from here on no change is missed, however long what is done about one takes."""
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415 -- an extra, for those who write plugins
    except ImportError as error:
        raise FailedPrecondition(
            "--reload needs watchfiles, which is not installed",
            hint=f"{sys.executable} -m pip install 'ksi[reload]'",
            reason="not_installed",
        ) from error
    changes = watch(
        *folders,
        watch_filter=PythonFilter(extra_extensions=CODE),
        step=SETTLED_MS,
        rust_timeout=TURN_MS,
        yield_on_timeout=True,
    )
    next(changes)
    return changes


def _reload(paths: Paths, files: Sequence[Path], timeout_s: float, tell: Tell) -> None:
    names = ", ".join(file.name for file in files)
    broken = [problem for file in files if (problem := _syntax_error(file))]
    if broken:
        tell("".join(f"✗ {problem}\n" for problem in broken) + "  The daemon goes on with what it had.\n")
        return
    begun = time.monotonic()
    step = stop(paths)
    if step.code == Exit.OK:
        step = start(paths, timeout_s=timeout_s)
    if step.code != Exit.OK:
        tell(f"✗ {names}: {step.text}\n")
        return
    tell(f"✓ {names}: reloaded in {duration(time.monotonic() - begun)}\n{_refused(paths)}")


def _syntax_error(file: Path) -> str | None:
    if file.suffix != ".py" or not file.exists():
        return None
    try:
        compile(file.read_bytes(), file, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{file.name}:{error.lineno}: {error.msg}"
    except (OSError, ValueError) as error:
        return f"{file.name}: {error}"
    return None


def _refused(paths: Paths) -> str:
    try:
        plugins: list[dict[str, Any]] = call_raw("plugin:list", socket=paths.socket)["plugins"]
    except KSIError:  # it is on its way down already: another change
        return ""
    return "".join(
        f"  ✗ {each['name']}: {each['error']}\n" for each in plugins if each["status"] == "refused"
    )
