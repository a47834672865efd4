# SPDX-License-Identifier: Apache-2.0
"""The client in an asyncio program: it trains while the program does its own work, and what happens comes as a stream.

    python -m examples.asyncio_client node.toml

The client has a thread of its own, and calls back from there; `call_soon_threadsafe` brings that into the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fedkrso import Client, Line

__all__ = ["events_of", "work_beside"]


async def events_of(node_file: Path) -> AsyncIterator[Line]:
    """Take part until the run is finished; what happens, as it happens. Whoever stops listening leaves the run."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Line]()
    client = Client.from_file(node_file, on_event=lambda line: loop.call_soon_threadsafe(told.put_nowait, line))
    client.start()
    ended = asyncio.ensure_future(asyncio.to_thread(client.wait))
    try:
        while not ended.done() or not told.empty():
            heard = asyncio.ensure_future(told.get())
            await asyncio.wait({heard, ended}, return_when=asyncio.FIRST_COMPLETED)
            if heard.done():
                yield heard.result()
            else:
                heard.cancel()
        # Raises what the client ended with: wrong data, a broker that refuses it.
        ended.result()
    finally:
        client.leave()
        await asyncio.wait({ended})


async def work_beside(node_file: Path) -> int:
    """A program with work of its own; how often it got round to it."""
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.1)

    working = asyncio.create_task(work())
    async for line in events_of(node_file):
        print(line)
    working.cancel()
    return turns


if __name__ == "__main__":
    print(asyncio.run(work_beside(Path(sys.argv[1]))), "turns of other work")
