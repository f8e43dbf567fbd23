"""Tell: events of your own, stored before the answer, in the order of the log.

.venv/bin/python examples/03_publish.py
"""

import uuid

from ksi_client import Client
from ksi_common.errors import FailedPrecondition
from ksi_common.events import event


def main() -> None:
    order = f"order/{uuid.uuid4().hex}"
    with Client() as ksi:
        told = ksi.call(event.Publish(event="shop:opened", data={"by": "Ada"}))
        print(f"stored at {told.seq}" if told.seq else "not stored")

        # The same id twice is stored once: send again what you are not sure of.
        again = event.Publish(event="shop:opened", data={"by": "Ada"}, event_id=f"opened-{told.event_id}")
        ksi.call(again)
        print(f"deduplicated: {ksi.call(again).deduplicated}")

        # A stream has versions of its own: append only if nobody was faster.
        placed = event.NewEvent(event="shop:ordered", data={"item": "tea"})
        first = ksi.call(event.Append(stream=order, events=[placed], expected_version="none"))
        try:
            ksi.call(event.Append(stream=order, events=[placed], expected_version="none"))
        except FailedPrecondition as error:
            print(f"version {first.version}, and a second first one is refused: {error.code}")

        for stored in ksi.call(event.Read(stream=order)).events:
            print(f"{stored.version}: {stored.event} {stored.data}")


if __name__ == "__main__":
    main()
