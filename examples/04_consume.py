"""Consume: work through events under a name, and go on where you were, whatever is killed in between.

.venv/bin/python examples/04_consume.py
"""

import asyncio
import uuid

from ksi_client import AsyncClient
from ksi_common.events import deadletter, event

ORDERS = "shop:ordered"


async def order(ksi: AsyncClient, *items: str) -> None:
    for item in items:
        await ksi.call(event.Publish(event=ORDERS, data={"item": item}))


async def main() -> None:
    name = f"packing-{uuid.uuid4().hex[:8]}"
    async with AsyncClient() as ksi:
        async with ksi.consume(name, ORDERS) as orders:  # the daemon keeps how far it is
            await order(ksi, "tea", "coffee", "a unicorn", "milk")
            async for ordered in orders:
                item = ordered.data["item"]
                if item == "coffee" and ordered.attempt == 1:
                    print("coffee is out, again later")
                    await ordered.nak(0.01)
                elif item == "a unicorn":
                    await ordered.nak(reason="there are none", give_up=True)
                elif item == "milk":
                    print("closing time")  # neither acked nor given back
                    break
                else:
                    print(f"packed {item}")
                    await ordered.ack()

        async with ksi.consume(name, ORDERS) as orders:
            packed = set()
            async for ordered in orders:
                await ordered.ack()
                packed.add(ordered.data["item"])
                if "milk" in packed:
                    break
            print("the next day, milk")

        for letter in (await ksi.call(deadletter.List(name=name))).letters:
            print(f"dead letter: {letter.event}, {letter.message}")


if __name__ == "__main__":
    asyncio.run(main())
