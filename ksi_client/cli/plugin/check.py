"""`ksi plugin check`: whether it loads, and what could be better."""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import orjson

from ksi_client.cli.failures import FAILED
from ksi_client.cli.invocation import Invocation
from ksi_client.cli.options import common_options
from ksi_client.cli.plugin.project import Project, environment, python, read_project
from ksi_client.cli.safety import one_line
from ksi_client.cli.writing import write, write_json, write_json_line

LIMIT_S: Final = 20.0
"""For loading and stopping one plugin."""
MARKS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}

Finding = Mapping[str, Any]

_FRAME: Final = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option("--strict", is_flag=True, help="Fail for what could be better, too.")
@common_options
@click.pass_obj
def check(invocation: Invocation, path: Path, *, strict: bool) -> int:
    """Load a plugin and say what is wrong with it, and where.

    \b
    ksi plugin check                   the plugin of this folder
    ksi plugin check hello.py          a single file
    ksi plugin check --strict --json   for CI

    It runs in a process of its own, with a daemon and a home that are gone afterwards; it need not be
    installed, and your daemon is not touched.
    """  # noqa: D301
    project = read_project(path)
    found = [
        {"plugin": name, **finding}
        for name in project.plugins
        for finding in (*findings(project, name, limit_s=invocation.timeout_s or LIMIT_S), *_tests(project))
    ]
    if invocation.format == "jsonl":
        for finding in found:
            write_json_line(invocation, finding)
    elif invocation.format == "json":
        write_json(invocation, {"findings": found})
    else:
        _show(invocation, project, found)
    levels = [finding["level"] for finding in found]
    return FAILED if "problem" in levels or (strict and "warning" in levels) else 0


def findings(project: Project, name: str, *, limit_s: float = LIMIT_S) -> Sequence[Finding]:
    """Give what a child process finds of one plugin, or how it ended."""
    options = ["--limit-s", str(limit_s), "--settings", orjson.dumps(project.settings, default=str).decode()]
    if project.is_file:
        options += ["--file", str(project.path)]
    command = python("-m", "ksi_daemon.checking", name, *options)
    with environment(project) as environ:
        try:
            done = subprocess.run(  # noqa: S603 -- our own module
                command, env=environ, capture_output=True, timeout=limit_s + LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return [_problem("it did not end, even when it was told to")]
    said = [orjson.loads(line) for line in done.stdout.splitlines()]
    if said and said[-1].get("done"):
        return said[:-1]
    return [*said, _death(done.returncode, done.stderr.decode(errors="replace"), project, limit_s)]


def _death(code: int, stderr: str, project: Project, limit_s: float) -> Finding:
    place = next(_own_frames(stderr, project), None)
    if "Timeout (" in stderr:
        return _problem(f"it did not load within {limit_s:g} s", place, "do long work in ksi_serve")
    if code < 0:
        fault = next((line for line in stderr.splitlines() if line.startswith("Fatal Python error")), "")
        how = fault.rpartition(": ")[2] or f"signal {-code}"
        return _problem(f"it crashed the process ({how})", place)
    last = (stderr.strip().splitlines() or [""])[-1]
    text = f"it ended the process with exit code {code}" + (f": {last}" if last else "")
    return _problem(text, place, "os._exit would end the whole daemon: raise an error in its place")


def _own_frames(stderr: str, project: Project) -> Iterator[str]:
    """Find lines of the author's in a traceback of faulthandler: the innermost comes first."""
    own = str(project.path if project.path.is_dir() else project.path.name)
    for file, line, _ in _FRAME.findall(stderr):
        if own in file:
            yield f"{Path(file).name}:{line}"


def _problem(text: str, place: str | None = None, hint: str | None = None) -> Finding:
    return {"level": "problem", "text": text, "place": place, "hint": hint}


def _tests(project: Project) -> Iterator[Finding]:
    count = len(project.tests)
    if count:
        yield {"level": "ok", "text": f"has {count} test file{'s'[: count > 1]}", "place": None, "hint": None}
    else:
        hint = "ksi plugin new NAME shows one; ksi plugin test runs it"
        yield {"level": "warning", "text": "has no test", "place": None, "hint": hint}


def _show(invocation: Invocation, project: Project, found: Sequence[Finding]) -> None:
    title = project.distribution if project.is_file else f"{project.distribution} {project.version}"
    write(invocation, click.style(one_line(title), bold=True))
    for finding in found:
        mark, color = MARKS[finding["level"]]
        place = f"  ({finding['place']})" if finding["place"] else ""
        write(invocation, f"  {click.style(mark, fg=color)} {one_line(finding['text'])}{one_line(place)}")
        if finding["hint"]:
            write(invocation, f"      try: {one_line(finding['hint'])}")
    write(invocation, _summary([finding["level"] for finding in found]))


def _summary(levels: Sequence[str]) -> str:
    problems, warnings = levels.count("problem"), levels.count("warning")
    if not problems and not warnings:
        return "Nothing to mend."
    parts = [(problems, "problem"), (warnings, "thing that could be better")]
    words = [f"{count} {_plural(noun, count)}" for count, noun in parts if count]
    return ", ".join(words) + "."


def _plural(noun: str, count: int) -> str:
    if count == 1:
        return noun
    return noun.replace("thing", "things") if noun.startswith("thing") else f"{noun}s"
