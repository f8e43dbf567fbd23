"""The last session."""

from pathlib import Path

import pytest

from ksi_client.chat.sessions import LastSession
from ksi_common.errors import NotFound


def test_the_last_session_is_kept_for_its_owner(tmp_path: Path) -> None:
    last = LastSession(tmp_path)
    assert not last.exists
    last.write("brave-otter")
    last.write("calm-wren")
    assert (last.exists, last.read()) == (True, "calm-wren")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["last_session_id"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b"../x\n", b"\xff"])
def test_what_names_no_session_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "last_session_id").write_bytes(content)
    with pytest.raises(NotFound, match="there is no session to go on with"):
        LastSession(tmp_path).read()
