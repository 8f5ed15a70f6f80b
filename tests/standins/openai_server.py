"""A chat-completions server on loopback that says what a test tells it to, byte by byte if need be."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]


def chunk(content: str | None = None, *, finish: str | None = None, delta: Json | None = None, **more: Any) -> Json:
    """One chunk as servers send it."""
    body = delta if delta is not None else ({} if content is None else {"content": content})
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "stand-in",
        "choices": [{"index": 0, "delta": body, "finish_reason": finish}],
        **more,
    }


def usage(prompt: int, completion: int) -> Json:
    """The last chunk, with the counts and no choices."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**chunk(), "choices": [], "usage": counts}


def event(payload: Json | str) -> bytes:
    """As it stands on the wire."""
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def answer(*words: str, finish: str = "stop", done: bool = True) -> bytes:
    """A whole stream."""
    events = [chunk("", delta={"role": "assistant", "content": ""}), *map(chunk, words), chunk(finish=finish)]
    events.append(usage(12, len(words)))
    return b"".join(map(event, events)) + (event("[DONE]") if done else b"")


@dataclass(kw_only=True)
class Scripted:
    """A reply: its bytes in writes of their own. `hang`: then nothing, until the client goes. `cut`: then a reset."""

    writes: Sequence[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    hang: bool = False
    cut: bool = False


class OpenAIServer:
    """Plays its script in order; when it is empty, echoes the last user message word by word."""

    def __init__(self) -> None:
        self.script: list[Scripted] = []
        self.requests: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[object] = set()
        self.models: list[Json] | None = [{"id": "stand-in", "object": "model", "max_model_len": 4096}]
        self.asked_for_models = 0
        self.props: Json | None = None
        self.disconnected = asyncio.Event()
        self.url = ""

    def say(self, *bodies: bytes | Scripted) -> None:
        """Append replies to the script."""
        self.script.extend(body if isinstance(body, Scripted) else Scripted(writes=[body]) for body in bodies)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport)
        reply = self.script.pop(0) if self.script else Scripted(writes=_echo(body))
        response = web.StreamResponse(
            status=reply.status, headers={"Content-Type": reply.content_type, **reply.headers}
        )
        await response.prepare(request)
        try:
            for part in reply.writes:
                await response.write(part)
                await asyncio.sleep(0)
            if reply.hang:
                await asyncio.Event().wait()
            if reply.cut and request.transport:
                request.transport.abort()
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        return response

    async def list_models(self, _: web.Request) -> web.Response:
        self.asked_for_models += 1
        if self.models is None:
            return web.Response(status=404, text="Not Found")
        return web.json_response({"object": "list", "data": self.models})

    async def tell_props(self, _: web.Request) -> web.Response:
        return web.json_response(self.props) if self.props else web.Response(status=404)

    async def apply_template(self, request: web.Request) -> web.Response:
        messages = (await request.json())["messages"]
        return web.json_response({"prompt": "".join(f"<{m['role']}> {m['content']}" for m in messages)})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": list(range(len((await request.json())["content"].split())))})


def _echo(body: Json) -> list[bytes]:
    said = [message["content"] for message in body["messages"] if message["role"] == "user"]
    words = f"You said: {said[-1] if said else ''}".split(" ")
    texts: Iterable[str] = [words[0], *(f" {word}" for word in words[1:])][: body.get("max_tokens", 1000)]
    full = len(words) > body.get("max_tokens", 1000)
    return [*(event(chunk(text)) for text in texts), answer(finish="length" if full else "stop")]


@asynccontextmanager
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """Listen on a free port of this machine."""
    server = OpenAIServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.completions)
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_get("/props", server.tell_props)
    app.router.add_post("/apply-template", server.apply_template)
    app.router.add_post("/tokenize", server.tokenize)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
