"""What the core adds: from accept to the model's request, and CPU per streamed token.

`python -m benchmarks.core`. Everything in one process with a scripted model; the bare loop beside it is the floor.
"""

import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bot.conversation import Conversations, Manner
from bot.engine import Engine
from bot.messages import ChatMessage, Finished, Health, ModelLimits, ModelRequest, Piece, Place, Text
from bot.prompt import Persona
from bot.store import SqlStore, sqlite_url
from tests.standins.recording import RecordingAdapter, said

IDLE = 200
AT_ONCE = 200
TOKENS = 20_000


class Stopwatch:
    """A model that notes when it was asked and streams as many tokens as told."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}
        self.tokens = 1
        self.prompts: list[str] = []

    async def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        self.asked[request.messages[-1].content] = time.perf_counter()
        self.prompts.append("".join(f"<{message.role}>{message.content}" for message in request.messages))
        for _ in range(self.tokens):
            yield Text(" word")
        yield Finished(reason="stop")

    async def limits(self) -> ModelLimits:
        return ModelLimits(model="stopwatch", context_tokens=1_000_000, output_tokens=1_000_000)

    async def count_tokens(self, request: ModelRequest) -> int:
        return len(request.messages)

    async def health(self) -> Health:
        return Health(name="model", ok=True, detail="stopwatch")


async def main() -> None:
    """Print the table."""
    model, adapter = Stopwatch(), RecordingAdapter()
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as opened:
            store = await opened.enter_async_context(SqlStore.open(sqlite_url(Path(folder) / "chinwag.db")))
            core = Conversations(
                store=store,
                backend=model,
                knowledge=None,
                adapters={"test": adapter},
                manner=Manner(persona=Persona(name="Friend", prompt="You are Friend."), max_tokens=1_000_000),
            )
            await opened.enter_async_context(contextlib.aclosing(core))
            engine = await opened.enter_async_context(
                Engine.open(data_dir=Path(folder), executor_id="bench", think=core.think, deliver=core.deliver)
            )
            await engine.boot()
            idle = [await _one(engine, model, number) for number in range(IDLE)]
            began = time.perf_counter()
            await asyncio.gather(
                *(engine.accept(said(n, f"q{n}", place=_place(n))) for n in range(1000, 1000 + AT_ONCE))
            )
            await engine.drained()
            burst = time.perf_counter() - began
            answered = sum(reply.answer is not None for reply in adapter.replies.values()) - IDLE
            reuse = await _reuse(core, model)
            model.tokens = TOKENS
            core_us = await _cpu_us(engine)
            bare_us = await _bare_us(model)
    idle.sort()
    print(f"accept to request, idle   p50 {statistics.median(idle):.1f} ms, p90 {idle[int(IDLE * 0.9)]:.1f} ms")
    print(f"{AT_ONCE} conversations at once {answered} answered in {burst:.2f} s")
    print(f"prompt already read a turn ago        {reuse:.1%} over 100 turns, between compactions")
    print(f"CPU per token, core without a wire {core_us:.1f} us, bare loop {bare_us:.1f} us")


async def _reuse(core: Conversations, model: Stopwatch) -> float:
    """The share of all that was read in 100 turns of one place that stood at the front of the prompt before, too."""
    model.prompts.clear()
    model.tokens = 30
    for number in range(100):
        asked = said(10_000 + number, f"Question {number}: what do you make of it, and why?", place=_place(-1))
        await core.think(asked, replay=False)
    turns = list(itertools.pairwise(model.prompts))
    return sum(_common(*pair) for pair in turns) / sum(len(later) for _, later in turns)


def _common(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _place(number: int) -> Place:
    return Place(platform="test", workspace="w", channel=str(number))


async def _one(engine: Engine, model: Stopwatch, number: int) -> float:
    began = time.perf_counter()
    await engine.accept(said(number, f"q{number}", place=_place(number)))
    await engine.drained()
    return (model.asked[f"q{number}"] - began) * 1000


async def _cpu_us(engine: Engine) -> float:
    began = time.process_time()
    await engine.accept(said(999_999, "long", place=_place(999_999)))
    await engine.drained()
    return (time.process_time() - began) / TOKENS * 1e6


async def _bare_us(model: Stopwatch) -> float:
    began = time.process_time()
    async for _ in model.stream(ModelRequest(messages=said_request(), max_tokens=1)):
        pass
    return (time.process_time() - began) / TOKENS * 1e6


def said_request() -> tuple[ChatMessage, ...]:
    """One message."""
    return (ChatMessage(role="user", content="bare"),)


if __name__ == "__main__":
    asyncio.run(main())
