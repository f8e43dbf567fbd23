"""The child of `ksi plugin check`: a whole daemon with one plugin, in a home that is removed."""

import argparse
import asyncio
import faulthandler
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar

import orjson
import structlog

from ksi_common.paths import Paths
from ksi_daemon.breadcrumb import Breadcrumb
from ksi_daemon.catalog import Plugin
from ksi_daemon.checking import declarations, source
from ksi_daemon.checking.advice import advised
from ksi_daemon.checking.awaiting import unawaited
from ksi_daemon.checking.findings import Finding, unique
from ksi_daemon.daemon import Daemon
from ksi_daemon.own_output import own_output
from ksi_daemon.settings import Settings
from ksi_daemon.supervisor import attempt

T = TypeVar("T")

SLOW_MS: Final = 500.0
"""An import that takes longer is everybody's start-up."""


class Stopwatch(Breadcrumb):
    """Times what it would mark: the import of each plugin."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.took_ms: dict[str, float] = {}

    def during(self, plugin: str, action: Callable[[], T]) -> T:
        """Run ``action`` and keep how long the first one of the plugin took."""
        begun = perf_counter()
        try:
            return super().during(plugin, action)
        finally:
            self.took_ms.setdefault(plugin, (perf_counter() - begun) * 1000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check one plugin; write what is found."""
    parser = argparse.ArgumentParser(prog="python -m ksi_daemon.checking")
    parser.add_argument("name")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--settings", type=orjson.loads, default={}, help="the plugin's table, as JSON")
    parser.add_argument("--limit-s", type=float, default=20.0)
    options = parser.parse_args(arguments)
    # A plugin that hangs or crashes the process leaves the line that it was at on stderr.
    faulthandler.enable()
    faulthandler.dump_traceback_later(options.limit_s, exit=True)
    with own_output() as say, tempfile.TemporaryDirectory(prefix="ksi-check-") as folder:
        for finding in asyncio.run(_check(options.name, options.file, Path(folder), options.settings)):
            say(asdict(finding))
        say({"done": True})


async def _check(name: str, file: Path | None, folder: Path, table: Mapping[str, Any]) -> Sequence[Finding]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    # What else is installed is loaded, too: the plugin may need it.
    settings = Settings(plugins={name: dict(table)})
    if file is not None:
        plugins = folder / "plugins"
        plugins.mkdir()
        (plugins / file.name).symlink_to(file)
        settings = settings.model_copy(update={"plugins_dir": [plugins]})
    daemon = Daemon(Paths(folder / "var"), settings)
    watch = daemon.breadcrumb = Stopwatch(daemon.paths.breadcrumb)
    daemon.paths.run.mkdir(parents=True)
    found: list[Finding] = []

    def examine(daemon: Daemon) -> None:
        try:
            found.extend(_examine(daemon, name, watch.took_ms.get(name, 0.0)))
        finally:
            daemon.lifecycle.stop("checked", 0.0)

    await daemon.serve(ready=examine)
    return unique(found)


def _examine(daemon: Daemon, name: str, took_ms: float) -> Iterator[Finding]:
    plugin = daemon.catalog.plugins.get(name)
    if plugin is None:
        yield Finding("problem", f"no plugin {name} was found", hint="does its module exist?")
        return
    refused = list(declarations.handlers(daemon, plugin)) if plugin.module is not None else []
    if plugin.status != "loaded":
        refusal = _refusal(plugin)
        if all(finding.text != refusal.text for finding in refused):
            refused.append(refusal)
    yield from (advised(finding, plugin.module) for finding in refused)
    if plugin.status == "loaded":
        yield from _loaded(plugin, took_ms)
        yield from declarations.events(daemon, plugin)
    for module in source.modules_in(plugin.module) if plugin.module is not None else ():
        for look in (source.blocking, source.undecorated, unawaited):
            said = attempt(lambda look=look, module=module: list(look(module)))  # type: ignore[misc]
            yield from said if isinstance(said, list) else ()


def _refusal(plugin: Plugin) -> Finding:
    text, _, place = str(plugin.error).rpartition(" (")
    if text and place.endswith(")") and ":" in place:
        return Finding("problem", text, place.removesuffix(")"))
    return Finding("problem", str(plugin.error))


def _loaded(plugin: Plugin, took_ms: float) -> Iterator[Finding]:
    level, hint = "ok", None
    if took_ms > SLOW_MS:
        level, hint = (
            "warning",
            "import what is heavy where it is used: every start of the daemon waits for this",
        )
    yield Finding(level, f"loads in {took_ms:.0f} ms", hint=hint)  # type: ignore[arg-type]
    done = {
        "answers": plugin.handled,
        "tells": plugin.told,
        "hears": list(map(str, plugin.subscribed)),
        "keeps": declarations.kept_by(plugin),
    }
    for does, names in done.items():
        if names:
            yield Finding("ok", f"{does} {', '.join(names)}")


if __name__ == "__main__":
    main()
