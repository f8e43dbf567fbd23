"""What `ksi plugin` is told to look at."""

from pathlib import Path

import pytest

from ksi_client.cli.plugin.project import read_project
from ksi_common.errors import NotFound


def test_a_path_where_nothing_is_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^there is no .*/absent\.py$"):
        read_project(tmp_path / "absent.py")


def test_a_folder_without_a_project_is_said_to_have_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_hello.py").touch()
    with pytest.raises(NotFound, match=r"no pyproject\.toml") as raised:
        read_project(tmp_path)
    assert raised.value.hint == "ksi plugin new NAME makes a plugin"


def test_a_single_file_of_a_folder_is_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "hello.py").touch()
    with pytest.raises(NotFound) as raised:
        read_project(tmp_path)
    assert raised.value.hint == "name the file, as hello.py"
