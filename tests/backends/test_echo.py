"""The echo, which other tests lean on: what it can be told to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.echo import EchoBackend, EchoReply, open_echo
from bot.errors import ModelBroke
from bot.messages import SMALL, ChatMessage, Finished, ModelRequest, Piece, Reasoning, Text, ToolCall, Usage, Waiting
from bot.ports import BackendOptions


def asking(text: str, *, max_tokens: int = 50) -> ModelRequest:
    return ModelRequest(messages=(ChatMessage(role="user", content=text),), max_tokens=max_tokens)


async def collect(backend: EchoBackend, text: str, into: list[Piece] | None = None) -> list[Piece]:
    pieces: list[Piece] = [] if into is None else into
    async for piece in backend.stream(asking(text)):
        pieces.append(piece)  # noqa: PERF401 - what came before an error counts
    return pieces


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


async def test_it_says_what_it_was_told() -> None:
    """Spaces and line breaks included, in pieces of a word."""
    pieces = await collect(EchoBackend(), "Hello  big\nworld ")

    assert text_of(pieces).rstrip() == "You said: Hello  big\nworld"
    assert sum(isinstance(piece, Text) for piece in pieces) == 5


@pytest.mark.parametrize(
    "prompt",
    [
        '<source n="1" title="Leaflet">\nOpen at nine.\n</source>\n\nWhen?',
        '<source n="1" title="Leaflet">\nOpen at nine.\n</source>\n\nAnswer from these sources only.\nQuestion: When?',
        "[1] Open at nine.\n\nQuestion: When?",
    ],
)
async def test_it_cites_the_first_source(prompt: str) -> None:
    """The question is repeated without the sources, and with a number that exists."""
    assert text_of(await collect(EchoBackend(), prompt)) == "You said: When? [1]"


async def test_a_script_is_played_in_order_then_rules_then_the_echo() -> None:
    """Scripted answers first; a rule answers where its key is in the question."""
    backend = EchoBackend(script=["one", EchoReply(text="two")], rules={"weather": "Sunny."})

    said = [text_of(await collect(backend, text)) for text in ("a", "b", "the weather?", "c")]

    assert said == ["one", "two", "Sunny.", "You said: c"]
    assert [request.messages[0].content for request in backend.requests] == ["a", "b", "the weather?", "c"]


async def test_a_reply_can_hold_every_kind_of_piece() -> None:
    """In the order in which servers send them."""
    call = ToolCall(id="1", name="look", arguments="{}")
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    reply = EchoReply(waiting=("Loading",), reasoning="hm", text="yes", tool_calls=(call,), usage=usage)

    pieces = await collect(EchoBackend(script=[reply]), "x")

    finish = Finished(reason="tool_calls", model="echo")
    assert pieces == [Waiting(note="Loading"), Reasoning("hm"), Text("yes"), call, usage, finish]


async def test_an_error_comes_after_the_text() -> None:
    """As when a server breaks off; nothing counts as open afterwards."""
    backend, pieces = EchoBackend(script=[EchoReply(text="half", error=ModelBroke("cut"))]), list[Piece]()
    with pytest.raises(ModelBroke):
        await collect(backend, "x", pieces)

    assert text_of(pieces) == "half"
    assert backend.open_streams == 0


async def test_it_is_opened_like_every_backend() -> None:
    """Script, window and profile come from the options."""
    extra: dict[str, Any] = {"script": ["scripted"], "profile": SMALL, "tools": True}
    async with open_echo(BackendOptions(name="echo", data_dir=Path(), context_tokens=512, extra=extra)) as backend:
        limits = await backend.limits()
        assert (limits.context_tokens, limits.profile, limits.tools) == (512, SMALL, True)
        assert text_of(await collect(backend, "x")) == "scripted"
