"""A setting comes from the strongest of the variables and files that say something of it."""

from pathlib import Path

import pytest

from ksi_daemon.setting_origins import no_json, origin_of

RULE = ("retention", "rules", 0, "pattern")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files, the weaker one first, and one that is not there."""
    weak, strong = tmp_path / "weak.toml", tmp_path / "strong.toml"
    weak.write_text("[limits]\nstreams = 1\nin_flight = 1\n[[retention.rules]]\npattern = 'a'\n")
    strong.write_text("[limits]\nstreams = 2\n[plugins.shop]\nurl = 'x'\n")
    return [weak, strong, tmp_path / "none.toml"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("limits", "streams"), "strong"),
        (("limits", "in_flight"), "weak"),
        (RULE, "weak"),
        (("plugins", "shop", "url"), "strong"),
        (("plugins", "shop", "missing"), "strong"),
    ],
)
def test_the_strongest_file_that_sets_it_is_named(files: list[Path], key: tuple[str, ...], name: str) -> None:
    (file,) = [file for file in files if file.stem == name]
    assert origin_of(key, files) == f" (in {file})"


def test_what_nobody_sets_has_none(files: list[Path]) -> None:
    assert origin_of(("log", "level"), files) == ""
    assert origin_of(("plugins", "other"), files) == ""
    assert origin_of((), files) == ""


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("KSI_LIMITS__STREAMS", "0", ("limits", "streams")),
        ("KSI_LIMITS", '{"streams": 0}', ("limits", "streams")),
        ("KSI_LIMITS", "3", ("limits",)),
        ("ksi_strict", "maybe", ("strict",)),
        ("KSI_RETENTION__RULES", "[{}]", RULE),
    ],
)
def test_the_environment_is_over_the_files(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: tuple[str, ...]
) -> None:
    monkeypatch.setenv(variable, value)
    assert origin_of(key, files) == f" (in the environment's {variable})"


def test_a_table_in_the_environment_is_not_where_what_it_does_not_say_comes_from(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_LIMITS", '{"connections": 1}')
    assert origin_of(("limits", "streams"), files) == f" (in {files[1]})"


def test_variables_that_are_no_json_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_LIMITS", "{")
    monkeypatch.setenv("KSI_LOG", "{}")
    monkeypatch.setenv("KSI_LOG__LEVEL", "debug")
    monkeypatch.setenv("KSI_RETENTION__RULES", "[{")
    monkeypatch.setenv("KSI_HOME", "/somewhere")
    assert sorted(no_json(["limits", "log", "retention"])) == ["KSI_LIMITS", "KSI_RETENTION__RULES"]
