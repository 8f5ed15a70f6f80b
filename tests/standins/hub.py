"""A Hugging Face hub on loopback: as much of its protocol as one file needs.

As seen from the hub's own client library: HEAD on `/REPO/resolve/main/FILE` answers with a redirect to another host
that carries the commit, the sha256 as `X-Linked-Etag` and the size; the bytes come from there, with ranges. No Xet.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Hub:
    """Serves `files`. With `stall_after` the next download stops there; `disconnected` tells when its client left."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stall_after: int | None = None
        self.stalled = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.downloads: list[str] = []
        """The `Range` of each download, empty for a whole one."""
        self.url = ""

    async def about(self, request: web.Request) -> web.Response:
        return web.json_response({"id": request.match_info["repo"], "siblings": [{"rfilename": n} for n in self.files]})

    async def resolve(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        if name not in self.files:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {
            "X-Repo-Commit": "0" * 40,
            "X-Linked-Etag": f'"{hashlib.sha256(self.files[name]).hexdigest()}"',
            "X-Linked-Size": str(len(self.files[name])),
            "Location": f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{name}",
        }
        return web.Response(status=302, headers=headers)

    async def bytes_of(self, request: web.Request) -> web.StreamResponse:
        data = self.files[request.match_info["file"]]
        wanted = request.headers.get("Range", "")
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        headers = {"Content-Length": str(len(data) - first), "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if wanted else 200, headers=headers)
        if request.method == "GET":
            self.downloads.append(wanted)
        await response.prepare(request)
        try:
            await self._send(response, data[first:] if request.method == "GET" else b"")
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        return response

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        stall, self.stall_after = self.stall_after, None
        await response.write(data[:stall])
        if stall is not None:
            self.stalled.set()
            await asyncio.Event().wait()


@asynccontextmanager
async def hub() -> AsyncIterator[Hub]:
    """Listen on a free port of this machine."""
    server = Hub()
    app = web.Application()
    app.router.add_get("/api/models/{repo:.+}", server.about)
    app.router.add_get("/cdn/{file}", server.bytes_of)
    app.router.add_get("/{repo:[^/]+/[^/]+}/resolve/main/{file}", server.resolve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
