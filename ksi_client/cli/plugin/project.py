"""A plugin as its author has it: a folder with pyproject.toml, or one file."""

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from ksi_common.errors import InvalidArgument, NotFound
from ksi_common.records import record

GROUP: Final = "ksi"
"""The entry-point group by which the daemon finds plugins."""
DECLARE: Final = 'add to pyproject.toml: [project.entry-points.ksi] and below it NAME = "PACKAGE.handlers"'


@record
class Project:
    """A folder with a plugin, or several; or a single file, which has no ``requires`` and no version."""

    path: Path
    distribution: str
    version: str
    plugins: Mapping[str, str]
    """Modules by the plugins' names."""
    requires: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What checks are made with: ``[tool.ksi.settings]``."""

    @property
    def is_file(self) -> bool:
        """Tell whether it is a single file."""
        return self.path.is_file()

    @property
    def roots(self) -> Sequence[Path]:
        """Folders that its modules are imported from."""
        found = (self.path / "src", self.path)
        return [folder for folder in found if folder.is_dir()]

    @property
    def tests(self) -> Sequence[Path]:
        """Its test files."""
        folder = self.path if self.path.is_dir() else self.path.parent
        names = ("test_*.py", "tests/**/test_*.py")
        wanted = f"test_{self.path.name}"
        return [
            path
            for name in names
            for path in sorted(folder.glob(name))
            if self.path.is_dir() or path.name == wanted
        ]


def read_project(path: Path) -> Project:
    """Read what a folder or a file says of its plugin; raise NotFound or InvalidArgument."""
    path = path.resolve()
    if path.is_file() and path.suffix == ".py":
        return Project(path, path.name, "0", {path.stem: path.stem})
    file = path / "pyproject.toml"
    if not path.exists():
        raise NotFound(f"there is no {path}", hint="ksi plugin new NAME makes a plugin", reason="no_plugin")
    if not file.is_file():
        raise NotFound(
            f"there is no pyproject.toml in {path}, and no .py file was given",
            hint=_guessed(path),
            reason="no_plugin",
        )
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file} is no TOML: {error}", reason="bad_pyproject") from error
    settings = table.get("tool", {}).get("ksi", {}).get("settings", {})
    return _project(path, table.get("project", {}), settings)


def _guessed(folder: Path) -> str:
    """Say what may have been meant by a folder that is no package."""
    names = sorted(
        path.name for path in folder.glob("*.py") if not path.name.startswith(("test_", "conftest."))
    )
    return f"name the file, as {names[0]}" if names else "ksi plugin new NAME makes a plugin"


def _project(path: Path, table: Mapping[str, Any], settings: Mapping[str, Any]) -> Project:
    plugins = table.get("entry-points", {}).get(GROUP, {})
    if not plugins:
        raise InvalidArgument(
            f"{path / 'pyproject.toml'} names no plugin: KSI finds packages by their entry points only",
            hint=DECLARE,
            reason="no_entry_point",
        )
    return Project(
        path,
        str(table.get("name", path.name)),
        str(table.get("version", "0")),
        plugins,
        tuple(table.get("dependencies", ())),
        settings,
    )


@contextmanager
def environment(project: Project, **more: str) -> Iterator[dict[str, str]]:
    """Give the environment of a child that has the project as if it was installed, and no ``KSI_*``.

    What importlib.metadata reads of an installed package is written into a folder of its own; nothing is
    changed in this environment.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KSI_", "PYTHONPATH"))}
    with TemporaryDirectory(prefix="ksi-plugin-") as folder:
        if not project.is_file:
            _write_metadata(project, Path(folder))
        roots = () if project.is_file else project.roots
        paths = [folder, *map(str, roots), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        yield {**kept, "PYTHONPATH": os.pathsep.join(paths), **more}


def _write_metadata(project: Project, folder: Path) -> None:
    made = folder / f"{project.distribution.replace('-', '_')}-{project.version}.dist-info"
    made.mkdir()
    facts = [f"Name: {project.distribution}", f"Version: {project.version}"]
    needs = [f"Requires-Dist: {need}" for need in project.requires]
    (made / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *facts, *needs, ""]))
    points = [f"{name} = {module}" for name, module in project.plugins.items()]
    (made / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *points, ""]))


def python(*arguments: str) -> list[str]:
    """Give a command of this Python; what lies in the working directory is not imported."""
    return [sys.executable, "-P", *arguments]
