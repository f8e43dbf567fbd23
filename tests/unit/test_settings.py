"""Settings come from the environment over files over defaults; a mistake is named by its key."""

import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from ksi_common.errors import InvalidArgument, PermissionDenied
from ksi_common.paths import Paths
from ksi_daemon.plugin_settings import read_table
from ksi_daemon.settings import Settings, config_files, load_settings, setting_names


class Shop(BaseModel):
    """Settings of a plugin."""

    url: str


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("KSI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "var")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def refusal(paths: Paths, text: str) -> InvalidArgument:
    write(paths.config, text)
    with pytest.raises(InvalidArgument) as refused:
        load_settings(paths)
    return refused.value


def test_defaults_hold_where_nothing_is_set(paths: Paths) -> None:
    assert load_settings(paths).model_dump() == Settings().model_dump()
    assert load_settings(paths).limits.in_flight == 128


def test_a_file_is_over_the_defaults(paths: Paths) -> None:
    write(paths.config, "[limits]\nin_flight = 7\n")
    assert load_settings(paths).limits.in_flight == 7


def test_what_a_file_does_not_name_keeps_its_default(paths: Paths) -> None:
    write(paths.config, "[limits]\nin_flight = 7\n")
    assert load_settings(paths).limits.streams == 1024


def test_the_environment_is_over_the_file(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write(paths.config, '[log]\nlevel = "warning"\nfiles = 3\n')
    monkeypatch.setenv("KSI_LOG__LEVEL", "debug")
    log = load_settings(paths).log
    assert (log.level, log.files) == ("debug", 3)


def test_the_homes_file_is_over_the_users(paths: Paths) -> None:
    _, user, home = config_files(paths)
    write(user, "[limits]\nin_flight = 1\nstreams = 2\n")
    write(home, "[limits]\nin_flight = 3\n")
    limits = load_settings(paths).limits
    assert (limits.in_flight, limits.streams) == (3, 2)


def test_files_are_the_systems_the_users_and_the_homes_in_this_order(paths: Paths, tmp_path: Path) -> None:
    assert config_files(paths) == [
        Path("/etc/ksi/config.toml"),
        tmp_path / "config" / "ksi" / "config.toml",
        paths.config,
    ]


def test_without_xdg_the_users_file_is_in_dot_config(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert config_files(paths)[1] == Path("/home/somebody/.config/ksi/config.toml")


def test_no_dotenv_is_read(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / ".env", "KSI_STRICT=1\n")
    assert load_settings(paths).strict is False


def test_tables_of_plugins_are_kept_as_they_are(paths: Paths) -> None:
    write(paths.config, '[plugins.shop]\nurl = "x"\n[plugins.shop.deep]\nn = 1\n')
    assert load_settings(paths).plugins == {"shop": {"url": "x", "deep": {"n": 1}}}


def test_folders_are_read_from_the_environment_as_json(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_PLUGINS_DIR", '["/a", "/b"]')
    assert load_settings(paths).plugins_dir == [Path("/a"), Path("/b")]


def test_folders_in_the_environment_may_be_parted_as_in_path(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSI_PLUGINS_DIR", "/a:/b:")
    assert load_settings(paths).plugins_dir == [Path("/a"), Path("/b")]


def test_variables_that_are_no_settings_are_left_alone(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_HOME", "/somewhere")
    monkeypatch.setenv("KSI_SOCKET", "/some.sock")
    assert load_settings(paths).model_dump() == Settings().model_dump()


def test_an_unknown_key_is_refused_with_a_guess(paths: Paths) -> None:
    error = refusal(paths, "[limits]\nin_flght = 7\n")
    assert error.message == f'there is no setting "limits.in_flght" (in {paths.config})'
    assert error.hint == 'did you mean "limits.in_flight"?'
    assert error.details == {"reason": "unknown_setting"}


def test_an_unknown_key_like_no_other_is_refused_with_where_to_look(paths: Paths) -> None:
    error = refusal(paths, "zzz = 7\n")
    assert error.message == f'there is no setting "zzz" (in {paths.config})'
    assert error.hint == "docs/reference/settings.md lists them"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[limits]\nin_flight = 0\n", "limits.in_flight", "greater than or equal to 1"),
        ('[limits]\nhandler_s = "soon"\n', "limits.handler_s", "valid number"),
        ('[log]\nlevel = "loud"\n', "log.level", "'debug', 'info', 'warning' or 'error'"),
        ("log = 3\n", "log", ""),
        ("[limits]\nin_flight = true\n", "limits.in_flight", "input should be a number, not a boolean"),
        ("[limits]\nhandler_s = true\n", "limits.handler_s", "input should be a number, not a boolean"),
        ("[limits]\nhandler_s = inf\n", "limits.handler_s", "less than or equal to 1000000000"),
        ("[limits]\ndrain_s = 1e300\n", "limits.drain_s", "less than or equal to 1000000000"),
        ("[retention]\nstubs_max_age_days = inf\n", "retention.stubs_max_age_days", "less than or equal to"),
        ("[retention]\nmax_stubs = 99999999999999999999\n", "retention.max_stubs", "less than or equal to"),
    ],
    ids=[
        "too small",
        "no number",
        "no level",
        "no table",
        "yes",
        "no time at all",
        "endless",
        "no time",
        "for ever",
        "no count",
    ],
)
def test_a_bad_value_names_its_key(paths: Paths, text: str, key: str, says: str) -> None:
    error = refusal(paths, text)
    assert error.message.startswith(f"setting {key}: ")
    assert error.message.endswith(f" (in {paths.config})")
    assert says in error.message
    assert error.details == {"reason": "bad_setting", "setting": key}


def test_a_bad_value_in_the_environment_names_its_key(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_LIMITS__STREAMS", "many")
    write(paths.config, "[limits]\nstreams = 3\n")
    says = r"setting limits\.streams: .* \(in the environment's KSI_LIMITS__STREAMS\)"
    with pytest.raises(InvalidArgument, match=says):
        load_settings(paths)


def test_a_bad_value_in_the_users_file_names_that_file(paths: Paths) -> None:
    user = config_files(paths)[1]
    write(user, "[limits]\nin_flight = 0\n")
    assert refusal(paths, "[limits]\nstreams = 3\n").message.endswith(f" (in {user})")


def test_the_table_of_a_plugin_knows_where_it_comes_from(paths: Paths) -> None:
    write(paths.config, "[plugins.shop]\nulr = 1\n")
    settings = load_settings(paths)
    with pytest.raises(InvalidArgument) as refused:
        read_table("shop", settings.plugins["shop"], Shop, origin=settings.origin)
    says = f'there is no setting "plugins.shop.ulr" (in {paths.config}); did you mean "url"?'
    assert refused.value.message == says
    with pytest.raises(InvalidArgument) as refused:
        read_table("shop", {}, Shop, origin=settings.origin)
    assert refused.value.message == f"setting plugins.shop.url: Field required (in {paths.config})"


def test_what_no_file_sets_has_no_origin(paths: Paths) -> None:
    write(paths.config, "[plugins.shop]\nurl = 1\n")
    assert Settings(plugins={"shop": {"ulr": 1}}).origin(("plugins", "shop", "ulr")) == ""
    assert load_settings(paths).origin(("plugins", "other", "url")) == ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(paths: Paths) -> None:
    write(paths.config, "strict = true\n")
    os.chown(paths.config, 65534, 65534)
    with pytest.raises(PermissionDenied, match=r"ksi\.toml belongs to another user \(uid 65534\)"):
        load_settings(paths)


def test_bad_toml_is_refused_with_the_place(paths: Paths) -> None:
    error = refusal(paths, "[limits\n")
    assert error.message.startswith(f"settings cannot be read: {paths.config}: ")
    assert "line 1" in error.message
    assert error.details == {"reason": "bad_settings"}


def test_bad_json_in_the_environment_is_refused(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSI_LIMITS", "{")
    with pytest.raises(InvalidArgument, match="read: KSI_LIMITS in the environment is no JSON"):
        load_settings(paths)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().strict = True  # type: ignore[misc]


def test_settings_are_listed_by_their_dotted_names() -> None:
    names = setting_names()
    assert {"strict", "log.level", "limits.in_flight", "plugins"} <= set(names)
    assert "log" not in names
