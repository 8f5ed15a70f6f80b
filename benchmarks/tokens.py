"""CPU time that one streamed token costs: the openai wire beside a bare aiohttp reader, in one run.

    python benchmarks/tokens.py [--streams 100] [--rate 50] [--tokens 200]

A loopback server in a process of its own writes `streams` answers at `rate` tokens a second each. The client's CPU time
(user and system, of this process alone) is divided by the tokens it got. "bare" reads the bytes and does nothing with
them; the difference is what the wire itself adds. "core" is a whole turn per stream: accepted by the engine,
remembered, shown at the pace of Discord; what a turn costs with a single token is taken off, and stated.
"""

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from backends.openai import open_client
from bot.messages import ChatMessage, ModelRequest, Text
from bot.ports import BackendOptions

_REQUEST = ModelRequest(messages=(ChatMessage(role="user", content="Tell me a story."),), max_tokens=1000)
Client = Callable[[str, int], Awaitable[int]]


async def bare(url: str, streams: int) -> int:
    """Bytes in, nothing made of them."""

    async def one(session: aiohttp.ClientSession) -> int:
        got = 0
        async with session.post(f"{url}/v1/chat/completions", json={"stream": True}) as response:
            while await response.content.readany():
                got += 1
        return got

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        return sum(await asyncio.gather(*(one(session) for _ in range(streams))))


async def wire(url: str, streams: int) -> int:
    """The openai backend, up to the pieces that the core gets."""
    options = BackendOptions(name="openai", data_dir=Path(), base_url=url, model="m")
    async with open_client(options) as backend:

        async def one() -> int:
            return sum([1 async for piece in backend.stream(_REQUEST) if type(piece) is Text])

        return sum(await asyncio.gather(*(one() for _ in range(streams))))


async def core(url: str, streams: int) -> int:
    """Whole turns: engine, store, prompt, wire, output filter, a reply written every 1.2 s."""
    from bot.conversation import Conversations, Manner
    from bot.engine import Engine
    from bot.messages import Place
    from bot.ports import AdapterLimits
    from bot.prompt import Persona
    from bot.store import SqlStore, sqlite_url
    from tests.standins.recording import RecordingAdapter, said

    adapter = RecordingAdapter(limits=AdapterLimits(max_chars=2000, edit_interval_s=1.2))
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as opened:
            store = await opened.enter_async_context(SqlStore.open(sqlite_url(Path(folder) / "chinwag.db")))
            options = BackendOptions(name="openai", data_dir=Path(), base_url=url, model="m")
            turns = Conversations(
                store=store,
                backend=await opened.enter_async_context(open_client(options)),
                knowledge=None,
                adapters={"test": adapter},
                manner=Manner(persona=Persona(name="Friend", prompt="You are Friend.")),
            )
            await opened.enter_async_context(contextlib.aclosing(turns))
            opening = Engine.open(
                data_dir=Path(folder),
                executor_id="bench",
                think=turns.think,
                deliver=turns.deliver,
                stopped=turns.stopped,
            )
            engine = await opened.enter_async_context(opening)
            await engine.boot()
            places = [Place(platform="test", workspace="w", channel=str(number)) for number in range(streams)]
            await asyncio.gather(*(engine.accept(said(n, "Tell me.", place=place)) for n, place in enumerate(places)))
            await engine.drained()
        return sum(len(reply.answer.text.split()) for reply in adapter.replies.values() if reply.answer)


async def serve(rate: float, tokens: int) -> None:
    """Write each token of each answer as a chunk of its own, on time; one line on standard output says where."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET "):  # the list of models
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()
            return
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        start = asyncio.get_running_loop().time() + random.random() / rate  # real streams do not march in step
        for number in range(tokens):
            await asyncio.sleep(start + number / rate - asyncio.get_running_loop().time())
            writer.write(_chunk(_event({"content": f" word{number % 10}"}, None)))
        writer.write(_chunk(_event({}, "stop") + b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n".encode()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def measure(client: Client, url: str, streams: int, tokens: int) -> tuple[float, float]:
    """Microseconds of CPU a token, and seconds in all."""
    cpu, wall = time.process_time(), time.monotonic()
    asyncio.run(_got_all(client, url, streams, tokens))
    return (time.process_time() - cpu) / (streams * tokens) * 1e6, time.monotonic() - wall


async def _got_all(client: Client, url: str, streams: int, tokens: int) -> None:
    got = await client(url, streams)
    if client is not bare and got != streams * tokens:
        raise SystemExit(f"{got} tokens came, {streams * tokens} were sent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.rate, given.tokens))
        return
    with serving(given.rate, given.tokens) as url, serving(given.rate, 1) as short:
        print(f"{given.streams} streams, {given.rate:.0f} tokens/s each, {given.tokens} tokens; us of CPU a token")
        print(f"{'round':>5} {'bare':>8} {'openai':>8} {'core':>8} {'core/bare':>9} {'ms a turn':>9}")
        for client in (bare, wire, core):  # imports and first connections are not what is measured
            measure(client, short, 3, 1)
        for number in range(1, given.rounds + 1):
            floor, _ = measure(bare, url, given.streams, given.tokens)
            ours, _ = measure(wire, url, given.streams, given.tokens)
            turn, _ = measure(core, short, given.streams, 1)
            whole, _ = measure(core, url, given.streams, given.tokens)
            a_token = (whole * given.tokens - turn) / (given.tokens - 1)
            print(f"{number:>5} {floor:8.1f} {ours:8.1f} {a_token:8.1f} {a_token / floor:9.2f} {turn / 1000:9.1f}")


@contextlib.contextmanager
def serving(rate: float, tokens: int) -> Iterator[str]:
    """The loopback server in a process of its own; its address."""
    command = [sys.executable, __file__, "--serve", "--rate", str(rate), "--tokens", str(tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdin
        yield server.stdout.readline().strip()
        server.stdin.close()


if __name__ == "__main__":
    main()
