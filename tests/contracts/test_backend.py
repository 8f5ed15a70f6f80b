"""What every model backend promises, checked on each: the echo, the openai wire, and the embedded model."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from backends import BACKENDS
from bot.messages import ChatMessage, Finished, ModelRequest, Piece, Text, Usage, Waiting
from bot.ports import BackendOptions, ModelBackend
from tests.standins import tiny_gguf
from tests.standins.openai_server import openai_server


@pytest.fixture(params=sorted(BACKENDS))
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ModelBackend]:
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {}
        if request.param == "openai":
            server = await stack.enter_async_context(openai_server())
            options = {"base_url": server.url, "model": "stand-in"}
        elif request.param == "embedded":
            pytest.importorskip("xllamacpp", reason="the embedded extra is not installed")
            options = {"model": str(tiny_gguf.write(tmp_path / "tiny.gguf"))}
        opened = BACKENDS[request.param](BackendOptions(name=request.param, data_dir=tmp_path, **options))
        yield await stack.enter_async_context(opened)


def asking(text: str = "Say something about the weather.", *, max_tokens: int = 24) -> ModelRequest:
    system = ChatMessage(role="system", content="Be brief.")
    return ModelRequest(
        messages=(system, ChatMessage(role="user", content=text)), max_tokens=max_tokens, temperature=0.0, seed=1
    )


async def collect(backend: ModelBackend, request: ModelRequest) -> list[Piece]:
    return [piece async for piece in backend.stream(request)]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


async def test_a_stream_ends_with_its_finish(backend: ModelBackend) -> None:
    """Text comes, usage after it, and one `Finished` closes the stream; signs of waiting come only before the text."""
    pieces = await collect(backend, asking())
    kinds = [type(piece) for piece in pieces]

    assert text_of(pieces)
    assert kinds[-1] is Finished
    assert kinds.count(Finished) == 1
    assert kinds.index(Usage) > kinds.index(Text)
    assert Waiting not in kinds[kinds.index(Text) :]


async def test_the_answer_stays_within_its_tokens(backend: ModelBackend) -> None:
    """A limit of three tokens ends the answer for reason of length."""
    pieces = await collect(backend, asking("one two three four five six seven", max_tokens=3))
    finished = pieces[-1]

    assert isinstance(finished, Finished)
    assert finished.reason == "length"
    assert sum(isinstance(piece, Text) for piece in pieces) <= 3


async def test_the_same_question_has_the_same_answer(backend: ModelBackend) -> None:
    """At temperature 0 nothing is left to chance."""
    first, second = await collect(backend, asking()), await collect(backend, asking())

    assert text_of(first) == text_of(second)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_early_leaves_the_backend_well(backend: ModelBackend, how: str) -> None:
    """Closing the iterator, or cancelling the one who reads it, ends that stream and no other."""
    begun = asyncio.Event()

    async def listen() -> None:
        stream = backend.stream(asking("word " * 50, max_tokens=500))
        async with aclosing(stream) as pieces:  # type: ignore[type-var]  # every stream of ours is a generator
            async for piece in pieces:
                if isinstance(piece, Text):
                    begun.set()
                    if how == "close":
                        return
                    await asyncio.Event().wait()

    listener = asyncio.create_task(listen())
    await asyncio.wait_for(begun.wait(), 30)
    if how == "cancel":
        listener.cancel()
    await asyncio.wait([listener], timeout=5)

    assert listener.cancelled() is (how == "cancel")
    assert text_of(await collect(backend, asking()))


async def test_many_at_once_are_all_answered(backend: ModelBackend) -> None:
    """Nine people at once: nobody is forgotten, nobody gets another's end."""
    answers = await asyncio.gather(*(collect(backend, asking(f"Tell me about {n}.")) for n in range(9)))

    assert all(text_of(pieces) for pieces in answers)
    assert all(isinstance(pieces[-1], Finished) for pieces in answers)


async def test_limits_make_sense(backend: ModelBackend) -> None:
    """A window, an answer that fits in it, a name; the same when asked again."""
    limits = await backend.limits()

    assert 0 < limits.output_tokens <= limits.context_tokens
    assert limits.model
    assert limits.local
    assert await backend.limits() == limits


async def test_more_text_is_more_tokens(backend: ModelBackend) -> None:
    """Counting works before the first answer and after it, in every script."""
    for _ in range(2):
        few = await backend.count_tokens(asking("Hello"))
        many = await backend.count_tokens(asking("Hello, 世界. Привет, мир! " * 30))
        assert 0 < few < many
        await collect(backend, asking())


async def test_health_is_told_and_not_raised(backend: ModelBackend) -> None:
    """A backend that works says so, with a name and a detail."""
    health = await backend.health()

    assert health.ok
    assert health.name
    assert health.detail
