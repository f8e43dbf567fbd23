"""Where a thread stands, as the watchdog names it; what it watches is `tests/integration/test_guard.py`."""

import sys
from types import CodeType, FrameType
from typing import Any, cast

from ksi_daemon.watchdog import place_of


class Between:
    """A frame between two lines, as another thread may see it at any moment."""

    f_lineno = None

    def __init__(self, code: CodeType) -> None:
        self.f_code = code


def test_a_place_is_a_line_of_a_file() -> None:
    frame = sys._getframe()
    place = place_of(frame, "probe")
    assert place.code == 'place = place_of(frame, "probe")'
    assert (place.where, place.plugin) == (f"test_watchdog.py:{place.line}", "probe")


def test_a_frame_between_two_lines_is_at_its_function() -> None:
    frame: Any = Between(sys._getframe().f_code)
    place = place_of(cast("FrameType", frame), None)
    assert place.function == "test_a_frame_between_two_lines_is_at_its_function"
    assert place.code.startswith(f"def {place.function}")
