"""Turns from message to answer, on the real store and the scriptable backend."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.conversation import Conversations, Manner
from bot.errors import KnowledgeUnavailable, ModelBroke, ModelUnreachable
from bot.messages import (
    SMALL,
    Answer,
    Audience,
    Finished,
    Health,
    ModelLimits,
    ModelRequest,
    Outcome,
    Passage,
    Piece,
    Retrieval,
    Text,
    Usage,
)
from bot.policy import DECLINED
from bot.prompt import Persona
from bot.store import SqlStore, sqlite_url
from tests.standins.recording import ANN, BEN, HERE, RecordingAdapter, said


class Script:
    """A backend that answers as told, and keeps every request. Four characters are a token."""

    def __init__(self, *replies: str | Exception, context_tokens: int = 2048) -> None:
        self.replies = list(replies)
        self.requests: list[ModelRequest] = []
        self.context_tokens = context_tokens
        self.hold: asyncio.Event | None = None
        self.begun = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        self.requests.append(request)
        reply = self.replies.pop(0) if self.replies else self.answer(request)
        if isinstance(reply, Exception):
            raise reply
        for part in reply.split("|"):
            if part == "CUT":
                raise ModelBroke("cut")
            yield Text(part)
            self.begun.set()
            if self.hold is not None:
                await self.hold.wait()
        yield Usage(prompt_tokens=self.tokens(request), completion_tokens=5)
        yield Finished(reason="stop", model="script")

    def answer(self, request: ModelRequest) -> str:
        """Summaries keep facts; what asks for the weather is sorted as one; the rest is acknowledged."""
        if request.json_schema is not None:
            return '{"kind": "%s"}' % ("fact" if "weather" in request.messages[-1].content else "small_talk")
        if request.messages[0].content.startswith("You keep the notes"):
            facts = [line for line in request.messages[-1].content.splitlines() if "fact" in line]
            return "\n".join(dict.fromkeys(facts)) or "nothing of note"
        return "I see, go on, I am listening to every word of it."

    @staticmethod
    def tokens(request: ModelRequest) -> int:
        return sum(len(message.content) // 4 + 5 for message in request.messages)

    async def limits(self) -> ModelLimits:
        return ModelLimits(model="script", context_tokens=self.context_tokens, output_tokens=256, profile=SMALL)

    async def count_tokens(self, request: ModelRequest) -> int:
        return self.tokens(request)

    async def health(self) -> Health:
        return Health(name="model", ok=True, detail="scripted")


class Shelf:
    """A knowledge with one passage, or none, or nobody at the door."""

    def __init__(self, *, text: str = "", away: bool = False) -> None:
        self.text = text
        self.away = away

    async def search(self, query: str, audience: Audience, k: int) -> Retrieval:
        if self.away:
            raise KnowledgeUnavailable("away")
        passage = Passage(id="p", source_id="s", source="book.txt", title="Book", text=self.text, score=1.0, page=3)
        return Retrieval(passages=(passage,) if self.text else (), sources_searched=1)


@contextlib.asynccontextmanager
async def talking(
    tmp_path: Path, script: Script, shelf: Shelf | None = None, *, rate_per_minute: int = 0
) -> AsyncIterator[tuple[Conversations, SqlStore, RecordingAdapter]]:
    adapter = RecordingAdapter()
    async with SqlStore.open(sqlite_url(tmp_path / "test.db")) as store:
        conversations = Conversations(
            store=store,
            backend=script,
            knowledge=shelf,  # type: ignore[arg-type]  # only `search` is asked here
            adapters={"test": adapter},
            manner=Manner(
                persona=Persona(name="Friend", prompt="You are Friend."),
                max_tokens=256,
                rate_per_minute=rate_per_minute,
            ),
        )
        async with contextlib.aclosing(conversations):
            yield conversations, store, adapter


def answered(outcome: Outcome) -> Answer:
    assert outcome.answer is not None, outcome
    return outcome.answer


async def test_a_thousand_messages_fit_and_the_first_fact_survives(tmp_path: Path) -> None:
    """Every request of a long conversation fits the window, and what was said first is still known."""
    script = Script()
    async with talking(tmp_path, script) as (conversations, store, _):
        await conversations.think(said(0, "Remember the fact: my dog is called Biscuit."), replay=False)
        for number in range(1, 500):
            incoming = said(number, f"Message {number}: " + "the weather was fine and we walked along the river. " * 2)
            outcome = await conversations.think(incoming, replay=False)
            await conversations.deliver(incoming, outcome, replay=False)
        conversation = await store.conversation(HERE)

    assert all(script.tokens(request) + request.max_tokens <= script.context_tokens for request in script.requests)
    assert "Biscuit" in script.requests[-1].messages[0].content
    assert len(conversation.messages) + sum(block.messages for block in conversation.summaries) == 1000


async def test_the_front_of_the_prompt_stays_the_same(tmp_path: Path) -> None:
    """Over 100 turns without a compaction, 95 % of what is read was read the turn before."""
    script = Script(context_tokens=200_000)
    async with talking(tmp_path, script) as (conversations, _, __):
        for number in range(100):
            await conversations.think(said(number, f"Question {number}, what do you make of it?"), replay=False)

    texts = ["".join(f"<{m.role}>{m.content}" for m in request.messages) for request in script.requests]
    same = sum(len(b) for a, b in itertools.pairwise(texts) if (common := _common(a, b)) and common == len(a))
    total = sum(map(len, texts[1:]))
    reused = sum(_common(a, b) for a, b in itertools.pairwise(texts))
    assert reused / total >= 0.95
    assert same == total


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


async def test_speakers_are_named_where_several_talk(tmp_path: Path) -> None:
    """Alone, nobody is named; together, everybody is."""
    script = Script()
    async with talking(tmp_path, script) as (conversations, _, __):
        await conversations.think(said(1, "Hello"), replay=False)
        await conversations.think(said(2, "Hello too", by=BEN), replay=False)

    assert script.requests[0].messages[-1].content == "Hello"
    assert script.requests[1].messages[-1].content == "Ben: Hello too"
    assert script.requests[1].messages[1].content == "Ann: Hello"


async def test_passages_are_numbered_and_cited(tmp_path: Path) -> None:
    """The passage is in the last message, its number in the answer, an invented number gone."""
    script = Script("It is blue [1] [4].")
    async with talking(tmp_path, script, Shelf(text="The door is blue.")) as (conversations, _, __):
        answer = answered(await conversations.think(said(1, "What colour is the door?"), replay=False))

    assert "The door is blue." in script.requests[0].messages[-1].content
    assert answer.text == "It is blue [1]."
    assert [given.n for given in answer.cited] == [1]


async def test_a_question_outside_the_knowledge_is_declined(tmp_path: Path) -> None:
    """A small model is not asked for a fact that no source holds, however often; a greeting is answered."""
    script = Script()
    async with talking(tmp_path, script, Shelf()) as (conversations, _, __):
        mars = [await conversations.think(said(n, "What is the weather on Mars?"), replay=False) for n in (1, 2)]
        hello = answered(await conversations.think(said(3, "Hello"), replay=False))

    for outcome in mars:
        assert answered(outcome).text == DECLINED
        assert "nothing found in 1 source" in answered(outcome).notes[0]
    assert hello.text.startswith("I see")
    assert all(request.json_schema is not None for request in script.requests[:2])


async def test_what_was_said_here_is_answered(tmp_path: Path) -> None:
    """A question about something that was told in the conversation is not declined."""
    async with talking(tmp_path, Script(), Shelf()) as (conversations, _, __):
        await conversations.think(said(1, "The weather in our office is always fine."), replay=False)
        answer = answered(await conversations.think(said(2, "How is the weather in the office?"), replay=False))

    assert answer.text != DECLINED


async def test_one_person_cannot_flood(tmp_path: Path) -> None:
    """Beyond the rate a message ends in one line that says when; others and replays are not held up."""
    async with talking(tmp_path, Script(), rate_per_minute=2) as (conversations, _, __):
        outcomes = [await conversations.think(said(number, "Hello"), replay=False) for number in range(3)]
        other = await conversations.think(said(10, "Hello", by=BEN), replay=False)
        replayed = await conversations.think(said(11, "Hello"), replay=True)

    assert [outcome.problem is None for outcome in outcomes] == [True, True, False]
    assert outcomes[2].problem is not None
    assert "Send it again in" in outcomes[2].problem.message
    assert other.answer is not None
    assert replayed.answer is not None


async def test_an_absent_knowledge_is_said(tmp_path: Path) -> None:
    """The conversation goes on without the index, and the answer says so."""
    async with talking(tmp_path, Script(), Shelf(away=True)) as (conversations, _, __):
        answer = answered(await conversations.think(said(1, "Hello"), replay=False))

    assert any("knowledge is away" in note for note in answer.notes)


async def test_a_failing_model_ends_in_one_line(tmp_path: Path) -> None:
    """The person gets the sentence and a reference."""
    async with talking(tmp_path, Script(ModelUnreachable("No model answers."))) as (conversations, _, adapter):
        incoming = said(1, "Hello")
        outcome = await conversations.think(incoming, replay=False)
        await conversations.deliver(incoming, outcome, replay=False)

    problem = adapter.replies[incoming.event_id].problem
    assert problem is not None
    assert problem.message == "No model answers."
    assert len(problem.reference) == 8


async def test_a_cut_answer_is_kept_and_marked(tmp_path: Path) -> None:
    """What came before the connection broke is shown as what it is."""
    async with talking(tmp_path, Script("Half of |CUT")) as (conversations, _, __):
        answer = answered(await conversations.think(said(1, "Hello"), replay=False))

    assert (answer.text, answer.ending) == ("Half of", "cut")


async def test_a_stopped_answer_keeps_what_was_written(tmp_path: Path) -> None:
    """The text so far is the answer, marked as stopped, and remembered."""
    script = Script("First words| and more")
    script.hold = asyncio.Event()
    async with talking(tmp_path, script) as (conversations, store, _):
        incoming = said(1, "Hello")
        thinking = asyncio.create_task(conversations.think(incoming, replay=False))
        await script.begun.wait()
        thinking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await thinking
        answer = answered(await conversations.stopped(incoming))
        remembered = await store.conversation(HERE)

    assert (answer.text, answer.ending) == ("First words", "stopped")
    assert [m.text for m in remembered.messages] == ["Hello", "First words"]


async def test_a_known_message_is_not_paid_for_twice(tmp_path: Path) -> None:
    """Thinking about the same event again gives the kept outcome."""
    script = Script()
    async with talking(tmp_path, script) as (conversations, _, __):
        first = await conversations.think(said(1, "Hello"), replay=False)
        second = await conversations.think(said(1, "Hello"), replay=True)

    assert first == second
    assert len(script.requests) == 1


async def test_a_message_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    """It ends in one line that says what to do, and the next message is answered."""
    script = Script()
    async with talking(tmp_path, script) as (conversations, _, __):
        refused = await conversations.think(said(1, "long " * 5000), replay=False)
        fine = await conversations.think(said(2, "short"), replay=False)

    assert refused.problem is not None
    assert "/learn" in refused.problem.message
    assert fine.answer is not None


async def test_forgetting_takes_the_answers_too(tmp_path: Path) -> None:
    """What a person said and what was answered to it are gone; others' words stay."""
    async with talking(tmp_path, Script()) as (conversations, store, _):
        await conversations.think(said(1, "I am Ann"), replay=False)
        await conversations.think(said(2, "I am Ben", by=BEN), replay=False)
        gone = await store.forget(HERE, ANN)
        left = await store.conversation(HERE)

    assert gone.messages == 2
    assert [m.label for m in left.messages] == ["Ben", ""]


async def test_a_long_question_is_never_folded_away(tmp_path: Path) -> None:
    """The question that waits for its answer stays, however little room it leaves."""
    script = Script()
    async with talking(tmp_path, script) as (conversations, _, __):
        for number in range(12):
            await conversations.think(said(number, "It was a fine day by the river. " * 12), replay=False)
        outcome = await conversations.think(said(50, "Why? " * 500), replay=False)

    assert outcome.answer is not None
