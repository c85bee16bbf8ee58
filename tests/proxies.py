"""A proxy between a store and its server, that freezes, cuts connections, or loses one answer."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import anyio

__all__ = ["Proxy", "proxied"]

Accident = Literal["before", "after"]


class Proxy:
    """Passes bytes on, until told otherwise.

    Attributes:
        port: Where it listens, at 127.0.0.1.
        flows: Set while it passes anything on.
        accident: What happens at the next COMMIT: the connections are cut before the server sees it, or after it has
            carried it out and before its answer is passed on.
        accidents: How many have happened.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.flows = asyncio.Event()
        self.flows.set()
        self.accident: Accident | None = None
        self.accidents = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        both = (writer, server_writer)
        self._writers.update(both)
        lost = asyncio.Event()  # set once the server's next answer is to be lost
        up = self._pass_on(reader, server_writer, both, lost, is_up=True)
        down = self._pass_on(server_reader, writer, both, lost, is_up=False)
        await asyncio.gather(up, down)
        self._writers.difference_update(both)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, ...],
        lost: asyncio.Event,
        *,
        is_up: bool,
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                await self.flows.wait()
                if is_up and self.accident is not None and b"COMMIT\0" in chunk:
                    accident, self.accident = self.accident, None
                    self.accidents += 1
                    if accident == "before":
                        break
                    lost.set()
                elif not is_up and lost.is_set():
                    break
                writer.write(chunk)
                await writer.drain()
        for end in both:
            end.close()

    def cut(self) -> None:
        """Cut all connections that there are."""
        for writer in tuple(self._writers):
            transport = writer.transport
            transport.abort()


@asynccontextmanager
async def proxied(target: int) -> AsyncGenerator[Proxy]:
    """Run a proxy before a server at 127.0.0.1."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.flows.set()
        server.close()
        proxy.cut()
        with anyio.move_on_after(5, shield=True):
            await server.wait_closed()
