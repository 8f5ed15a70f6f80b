"""A web site on loopback, for tests of fetching."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """Pages by path; `asked` counts what was asked for."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.released = asyncio.Event()
        self._pages: dict[str, Handler] = {}

    def page(
        self, path: str, body: str | bytes, *, status: int = 200, content_type: str = "text/html", **headers: str
    ) -> str:
        """Put a page there and return its address."""

        async def answer(_request: web.Request) -> web.Response:
            content = body.encode() if isinstance(body, str) else body
            return web.Response(body=content, status=status, headers={"Content-Type": content_type, **headers})

        self._pages[path] = answer
        return self.url + path

    def redirect(self, path: str, target: str) -> str:
        """Put a redirect there and return its address."""
        return self.page(path, "", status=302, Location=target)

    def endless(self, path: str) -> str:
        """Put a page there that never stops, and return its address."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/plain"})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b"word " * 10_000)
            return response

        self._pages[path] = answer
        return self.url + path

    def silent(self, path: str) -> str:
        """Put a page there that does not answer before the site closes, and return its address."""

        async def answer(_request: web.Request) -> web.Response:
            await self.released.wait()
            return web.Response()

        self._pages[path] = answer
        return self.url + path

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        handler = self._pages.get(request.path)
        return await handler(request) if handler else web.Response(status=404)


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """A site on a free port of 127.0.0.1."""
    pages = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pages.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pages.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield pages
    finally:
        pages.released.set()
        await runner.cleanup()
