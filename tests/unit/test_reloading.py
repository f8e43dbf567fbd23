"""Settings that cannot be read again change nothing, and end nothing."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ksi_common.paths import Paths
from ksi_daemon.reloading import Reloading
from ksi_daemon.settings import load_settings


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("[limits\n", os.getuid()),
        pytest.param(
            "strict = true\n",
            65534,
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away"),
        ),
    ],
)
def test_a_hang_up_refuses_settings_in_a_line(tmp_path: Path, text: str, owner: int) -> None:
    paths = Paths(tmp_path / "var")
    reloading = Reloading(paths, load_settings(paths))
    paths.config.write_text(text)
    os.chown(paths.config, owner, -1)
    with capture_logs() as lines:
        reloading.hang_up()
    assert [line["event"] for line in lines] == ["settings.refused"]
