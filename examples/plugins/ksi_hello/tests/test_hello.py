"""Each test gets a daemon of its own in this process, with a home that is removed at the end."""

from ksi_daemon.testing import RunningDaemon


async def test_hello_is_answered_and_told(ksi: RunningDaemon) -> None:
    assert await ksi.call_raw("hello:hello", {"name": "Ada"}) == {"text": "Hello, Ada!"}
    assert ksi.emitted("hello:greeted") == [{"name": "Ada"}]
