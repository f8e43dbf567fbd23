"""What plugin authors test with: a real daemon in the process, a clock of one's own, a raw connection.

async def test_hello(ksi):                       # the fixture; or running_daemon(plugins=[...])
    assert await ksi.call_raw("hello:greet", {"name": "Ada"}) == {"text": "Hello, Ada!"}
    assert ksi.emitted("hello:greeted") == [{"name": "Ada"}]

docs/plugins/testing.md has the rest: time, recordings, crashes.
"""

from ksi_daemon.testing.clock import FakeClock
from ksi_daemon.testing.crashing import CrashPoint
from ksi_daemon.testing.recording import Difference, Exchange, Recording
from ksi_daemon.testing.running import RunningDaemon, running_daemon
from ksi_daemon.testing.wire import PATIENCE_S, Wire

__all__ = [
    "PATIENCE_S",
    "CrashPoint",
    "Difference",
    "Exchange",
    "FakeClock",
    "Recording",
    "RunningDaemon",
    "Wire",
    "running_daemon",
]
