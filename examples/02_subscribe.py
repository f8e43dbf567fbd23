"""Follow: hear what others change, and go on later from where you stopped.

.venv/bin/python examples/02_subscribe.py
"""

import asyncio

from ksi_client import AsyncClient
from ksi_common.events import state


async def change(ksi: AsyncClient, *values: int) -> None:
    for value in values:
        await ksi.call(state.Set(namespace="example", key="counter", value=value))


async def main() -> None:
    async with AsyncClient() as ksi:
        cursor = None
        async with ksi.subscribe("state:*") as changes:  # from now on, through restarts of the daemon
            await change(ksi, 1, 2)
            async for event in changes:
                print(f"{event.event} {event.data['value']}")
                if event.data["value"] == 2:
                    cursor = event.cursor
                    break

        await change(ksi, 3, 4)  # nobody listens
        print("back again")
        async with ksi.subscribe("state:*", start={"cursor": cursor}) as changes:
            async for event in changes:  # nothing was missed, nothing comes twice
                print(f"{event.event} {event.data['value']}")
                if event.data["value"] == 4:
                    break


if __name__ == "__main__":
    asyncio.run(main())
