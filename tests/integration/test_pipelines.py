"""Layers stand where they say, are for what they say, and are shown."""

from pathlib import Path

import pytest

from ksi_daemon.testing import running_daemon

from .conftest import LogFile, WritePlugin

CORE = ["correlation", "errors", "observation", "deadline", "permissions", "idempotency"]

DESK = """
    from ksi_daemon.plugin import Message, Request, handler, hookimpl, layer

    class Said(Message):
        text: str

    class Ask(Request[Said], event="{name}:ask", safe=True):
        '''Ask.'''

    seen = []

    @handler
    async def ask(request: Ask) -> Said:
        return Said(text="{name}")
"""

STAGES = """
    from pathlib import Path
    from ksi_daemon.plugin import hookimpl, layer

    def noting(name):
        async def note(envelope, send, call_next):
            with Path({trace!r}).open("a") as file:
                file.write(f"{{name}} ")
            await call_next(envelope, send)
        note.__name__ = name
        return note

    @hookimpl
    def ksi_middleware():
        return [
            layer(stage="after", namespaces=["desk"])(noting("after_{name}")),
            noting("before_{name}"),
            layer(stage="validate", events=["desk:a*"])(noting("validate_{name}")),
            layer(namespaces=["other"])(noting("other_{name}")),
        ]
"""


async def test_layers_stand_in_the_order_of_their_stages_and_it_is_shown(
    write_plugin: WritePlugin, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    files = [
        write_plugin(DESK.replace("{name}", "desk"), "desk"),
        write_plugin(STAGES.format(trace=str(trace), name="x"), "x"),
        write_plugin(STAGES.format(trace=str(trace), name="y"), "y"),
    ]
    async with running_daemon(plugins=files) as ksi:
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "desk"})
        trace.write_text("")  # what was asked before is forgotten
        assert await ksi.call_raw("desk:ask") == {"text": "desk"}
        assert trace.read_text().split() == [
            "validate_x", "validate_y", "before_x", "before_y", "after_x", "after_y",
        ]  # fmt: skip
    assert details["pipelines"] == {
        "desk:ask": [
            *CORE,
            "validate: x.validate_x", "validate: y.validate_y",
            "before: x.before_x", "before: y.before_y",
            "after: x.after_x", "after: y.after_y",
        ]
    }  # fmt: skip


async def test_an_event_that_a_layer_is_not_for_does_not_go_through_it(write_plugin: WritePlugin) -> None:
    only = """
        from ksi_daemon.plugin import hookimpl, layer

        async def refuse(envelope, send, call_next):
            raise ValueError("never")

        @hookimpl
        def ksi_middleware():
            return [layer(namespaces=["elsewhere"])(refuse)]
    """
    async with running_daemon(plugins=[write_plugin(only, "only")]) as ksi:
        route = ksi.daemon.catalog.routes["system:health"]
        assert route.begin is not None
        assert list(route.pipeline) == CORE
        async with ksi.connect() as wire:
            assert (await wire.call("nobody:knows"))["error"]["code"] == "NOT_FOUND"


async def test_a_layer_sees_events_that_no_class_declares(write_plugin: WritePlugin) -> None:
    source = """
        from ksi_daemon.plugin import PermissionDenied, hookimpl, layer

        @layer(stage="validate", namespaces=["classic"])
        async def guard(envelope, send, call_next):
            if envelope.event == "classic:secret":
                raise PermissionDenied("not for you")
            await call_next(envelope, send)

        @hookimpl
        def ksi_middleware():
            return [guard]

        @hookimpl
        async def ksi_handle_event(event):
            return {"by": event}
    """
    async with running_daemon(plugins=[write_plugin(source)]) as ksi, ksi.connect() as wire:
        assert (await wire.call("classic:secret"))["error"]["code"] == "PERMISSION_DENIED"
        assert (await wire.call("classic:open"))["data"] == {"by": "classic:open"}
        assert (await wire.call("other:secret"))["data"] == {"by": "other:secret"}


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ('layer(stage="first")', "there is no stage 'first'; there are validate, before, after"),
        ('layer(namespaces="desk")', 'namespaces and events are lists: namespaces=["weather"]'),
        ('layer(events=["Desk"])', "'Desk' is no pattern of events"),
    ],
)
async def test_a_layer_that_says_it_wrongly_refuses_its_plugin(
    write_plugin: WritePlugin, declared: str, says: str
) -> None:
    source = f"""
        from ksi_daemon.plugin import hookimpl, layer

        @{declared}
        async def guard(envelope, send, call_next):
            await call_next(envelope, send)
    """
    async with running_daemon(plugins=[write_plugin(source)]) as ksi:
        details = await ksi.call_raw("plugin:inspect", {"plugin_name": "probe"})
    assert details["status"] == "refused"
    assert says in details["error"]


async def test_a_bug_in_a_layer_is_charged_to_the_plugin_of_the_layer(
    write_plugin: WritePlugin, log_file: LogFile
) -> None:
    broken = """
        from ksi_daemon.plugin import hookimpl, layer

        @layer(namespaces=["desk"])
        async def broken(envelope, send, call_next):
            raise KeyError("city")

        @hookimpl
        def ksi_middleware():
            return [broken]
    """
    files = [write_plugin(DESK.replace("{name}", "desk"), "desk"), write_plugin(broken, "broken")]
    with log_file.written():
        async with running_daemon(plugins=files, settings={"strict": False}) as ksi, ksi.connect() as wire:
            error = (await wire.call("desk:ask"))["error"]
            listed = {
                each["name"]: each["failures"] for each in (await ksi.call_raw("plugin:list"))["plugins"]
            }
    assert error["details"] == {"plugin": "broken"}
    assert "plugin broken failed in desk:ask: KeyError (broken.py:5)" in error["message"]
    assert (listed["broken"], listed["desk"]) == (1, 0)
