"""Everything is below the home, except for a socket whose path would be too long."""

import os
import tempfile
from pathlib import Path

import pytest

from ksi_common import paths
from ksi_common.paths import MAX_SOCKET_PATH, Paths, default_home, runtime_dir


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KSI_HOME", "KSI_SOCKET", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_layout_is_that_of_var() -> None:
    var = Paths(Path("/home/k/var"))
    names = {
        var.run: "run",
        var.socket: "run/daemon.sock",
        var.pid_file: "run/ksi_daemon.pid",
        var.lock: "run/lock",
        var.breadcrumb: "run/breadcrumb",
        var.database: "db/ksi.db",
        var.backups: "backups",
        var.log: "logs/daemon/ksi.jsonl",
        var.blobs: "blobs",
        var.plugins: "../plugins",
        var.config: "../ksi.toml",
    }
    for path, name in names.items():
        assert path == Path(os.path.normpath(var.home / name))


def test_the_socket_can_be_named_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_SOCKET", "/run/other.sock")
    assert Paths(Path("/home/k/var")).socket == Path("/run/other.sock")


def test_a_socket_path_of_the_limit_stays_and_a_longer_one_moves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tail = "/run/daemon.sock"
    fits = Path("/" + "h" * (MAX_SOCKET_PATH - len(tail) - 1))
    assert Paths(fits).socket == Path(f"{fits}{tail}")
    moved = Paths(Path(f"{fits}h")).socket
    assert moved.parent == tmp_path
    assert moved.name.startswith("ksi-")
    assert moved.suffix == ".sock"


def test_the_limit_is_in_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert Paths(Path("/" + "é" * 60)).socket.parent == tmp_path


def test_long_homes_do_not_share_a_socket_and_one_home_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    one, other = Paths(Path("/" + "a" * 120)), Paths(Path("/" + "b" * 120))
    assert one.socket != other.socket
    assert one.socket == Paths(one.home).socket


def test_the_home_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KSI_HOME", "here")
    assert default_home() == tmp_path / "here"


def test_the_home_of_a_checkout_is_its_var() -> None:
    assert default_home() == Path(__file__).resolve().parents[2] / "var"


@pytest.mark.parametrize(("data_home", "home"), [("/xdg", "/xdg/ksi/var"), (None, "~/.local/share/ksi/var")])
def test_the_home_of_an_installation_is_among_the_users_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_home: str | None, home: str
) -> None:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "ksi_common" / "paths.py"))
    if data_home is not None:
        monkeypatch.setenv("XDG_DATA_HOME", data_home)
    assert default_home() == Path(home).expanduser()


def test_sockets_go_to_a_folder_of_the_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = runtime_dir()
    assert folder == tmp_path / f"ksi-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert runtime_dir() == folder


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"ksi-{os.getuid()}"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user"):
        runtime_dir()


def test_a_folder_that_others_can_enter_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"ksi-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others can enter"):
        runtime_dir()


def test_a_link_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / f"ksi-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(PermissionError):
        runtime_dir()
