"""Ask: store a value, read it back, and see what a refusal looks like.

.venv/bin/python examples/01_call.py
"""

from ksi_client import Client
from ksi_common.errors import KSIError
from ksi_common.events import state, system


def main() -> None:
    with Client() as ksi:
        health = ksi.call(system.Health())
        print(f"the daemon is {health.status}")

        ksi.call(state.Set(key="color", value={"name": "green", "rgb": [0, 128, 0]}))
        found = ksi.call(state.Get(key="color"))  # a state.Found: your editor knows its fields
        print(f"color is {found.value}")

        absent = ksi.call(state.Get(key="no such key"))
        print(f"found: {absent.found}")

        try:
            ksi.call_raw("state:gett", {"key": "color"})  # by name, as every other language does
        except KSIError as error:
            print(f"{error.code}: {error.message} ({error.hint})")


if __name__ == "__main__":
    main()
