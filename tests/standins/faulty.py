"""A proxy on loopback that stands before a real Qdrant and makes it fail as servers do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web


class Faulty:
    """Passes requests on; the next ones fail as `faults` says: a status, `slow`, `reset`, or `lost`.

    `lost`: the request is carried out, and then the connection breaks before the answer.
    """

    def __init__(self, target: str) -> None:
        self.url = ""
        self.faults: list[int | str] = []
        self.always: int | str | None = None
        self.only = ""
        """When set, only requests with this in their path fail."""
        self.asked: list[str] = []
        self._target = target
        self._session: aiohttp.ClientSession | None = None
        self._released = asyncio.Event()

    async def _pass_on(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        fault = self.always if self.only in request.path else None
        if fault is None and self.faults and self.only in request.path:
            fault = self.faults.pop(0)
        if isinstance(fault, int):
            return web.json_response({"status": {"error": "as the test wants it"}}, status=fault)
        if fault == "slow":
            await self._released.wait()
        if fault == "reset":
            return self._reset(request)
        assert self._session
        headers = {key: request.headers[key] for key in ("api-key", "Content-Type") if key in request.headers}
        async with self._session.request(
            request.method, self._target + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            body = await answer.read()
        if fault == "lost":
            return self._reset(request)
        return web.Response(body=body, status=answer.status, content_type="application/json")

    def _reset(self, request: web.Request) -> web.Response:
        if request.transport:
            request.transport.abort()
        return web.Response()


@contextlib.asynccontextmanager
async def faulty(target: str) -> AsyncIterator[Faulty]:
    """The proxy before `target`, on a free port of 127.0.0.1."""
    proxy = Faulty(target)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", proxy._pass_on)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        proxy._session = session
        try:
            yield proxy
        finally:
            proxy._released.set()
            await runner.cleanup()
