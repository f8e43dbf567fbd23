"""Who follows a told event by its old name gets it; nobody can tell it."""

from pathlib import Path

from ksi_daemon.testing import running_daemon

PLUGIN = """
from ksi_daemon.plugin import Bus, Message, Notification, Request, handler

class Done(Message): pass
class Broken(Notification, event="shop:broken", formerly=("shop:error",)): what: str
class Break(Request[Done], event="shop:break"):
    '''Break something.'''

@handler
async def break_(request: Break, bus: Bus) -> Done:
    await bus.notify(Broken(what="cup"))
    return Done()
"""


async def test_a_subscription_to_the_old_name_gets_the_new_one(tmp_path: Path) -> None:
    plugin = tmp_path / "shop.py"
    plugin.write_text(PLUGIN)
    async with running_daemon(plugins=[plugin]) as ksi, ksi.connect() as wire:
        wire.send({"event": "event:subscribe", "data": {"patterns": ["shop:error"]}, "id": "s"})
        while (await wire.receive())["type"] != "caught_up":
            pass
        wire.send({"event": "shop:break", "id": "b"})
        frames = [await wire.receive(), await wire.receive()]
        (item,) = [frame["data"] for frame in frames if frame["type"] == "item"]
        assert (item["event"], item["data"]) == ("shop:broken", {"what": "cup"})


async def test_the_log_is_searched_by_the_old_name(tmp_path: Path) -> None:
    plugin = tmp_path / "shop.py"
    plugin.write_text(PLUGIN)
    async with running_daemon(plugins=[plugin]) as ksi:
        await ksi.call_raw("shop:break")
        found = await ksi.call_raw("event:query", {"patterns": ["shop:error"]})
        assert [event["event"] for event in found["events"]] == ["shop:broken"]


async def test_a_client_cannot_tell_it_by_its_old_name(tmp_path: Path) -> None:
    plugin = tmp_path / "shop.py"
    plugin.write_text(PLUGIN)
    async with running_daemon(plugins=[plugin]) as ksi, ksi.connect() as wire:
        answer = await wire.call("event:publish", {"event": "shop:error", "data": {"what": "lie"}})
        assert answer["error"]["code"] == "PERMISSION_DENIED"
