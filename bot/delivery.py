"""Showing a growing answer at the pace a platform takes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from bot.errors import DeliveryFailed
from bot.ports import Reply


class LiveReply:
    """Collects pieces and shows them no more often than every `interval_s`.

    Adding a piece is cheap and waits for nothing; a failed write is tried again with the next text.
    """

    def __init__(self, reply: Reply, interval_s: float) -> None:
        self._reply = reply
        self._interval_s = interval_s
        self._parts: list[str] = []
        self._more = asyncio.Event()
        self._writing = asyncio.Lock()
        self._note = ""

    @property
    def reply(self) -> Reply:
        """The reply that is written to."""
        return self._reply

    @property
    def text(self) -> str:
        """Everything that was added."""
        return "".join(self._parts)

    def add(self, piece: str) -> None:
        """Show this too, soon."""
        self._parts.append(piece)
        if not self._more.is_set():
            self._more.set()

    async def status(self, note: str) -> None:
        """Show a passing sign of life, unless it is there already or the answer has begun."""
        if note == self._note or self._parts:
            return
        self._note = note
        with contextlib.suppress(DeliveryFailed):
            async with self._writing:
                await self._reply.status(note)

    @contextlib.asynccontextmanager
    async def showing(self) -> AsyncIterator["LiveReply"]:
        """While inside, what is added is shown; at the end everything has been."""
        shower = asyncio.create_task(self._show())
        try:
            yield self
        finally:
            shower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await shower
            if self._more.is_set():
                await self._write()

    async def _show(self) -> None:
        while True:
            await self._more.wait()
            await self._write()
            await asyncio.sleep(self._interval_s)

    async def _write(self) -> None:
        self._more.clear()
        with contextlib.suppress(DeliveryFailed):
            async with self._writing:
                await self._reply.write(self.text)
