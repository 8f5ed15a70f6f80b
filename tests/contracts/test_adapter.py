"""What every frontend promises about replies, checked on the recording one and on the terminal's."""

import asyncio
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import pytest

from adapters.console import ConsoleAdapter, ConsoleReply, Screen, audience_of, me, place
from bot.errors import DataFolderError, SourceNotFound
from bot.messages import (
    Answer,
    Attachment,
    CommandSpec,
    GivenPassage,
    Incoming,
    Invocation,
    Passage,
    Person,
    Place,
    Problem,
    Scope,
)
from bot.ports import ChatAdapter, Reply
from tests.standins.recording import ANN, RecordedReply, RecordingAdapter, said

QUESTION = "Who feeds the ducks\nin winter?"


class Stage(Protocol):
    """An adapter, and how a person sees what it shows."""

    adapter: ChatAdapter

    def shown(self, event_id: str) -> str:
        """All that the person sees of the reply, as text."""


class Console:
    """The terminal, with a file of text in place of the screen."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.adapter = ConsoleAdapter(source=io.StringIO(), out=self.out)

    def shown(self, event_id: str) -> str:
        return self.out.getvalue()


class Recorded:
    """The recording frontend, and a person who looks at what was recorded."""

    def __init__(self) -> None:
        self.adapter = RecordingAdapter()

    def shown(self, event_id: str) -> str:
        reply = self.adapter.replies[event_id]
        assert all(after.startswith(before) for before, after in pairwise(reply.written))
        lines = []
        if reply.answer is not None:
            lines = [reply.answer.text, *(_line(given) for given in reply.answer.cited)]
            lines += [f"({note})" for note in reply.answer.notes]
        elif reply.problem is not None:
            lines = [*reply.written[-1:], f"! {reply.problem.message} (reference {reply.problem.reference})"]
        else:
            lines = reply.written[-1:]
        return "".join(f"{line}\n" for line in lines)


def _line(given: GivenPassage) -> str:
    page = f", page {given.passage.page}" if given.passage.page else ""
    return f"[{given.n}] {given.passage.title}{page}"


@pytest.fixture(params=[Recorded, Console])
def stage(request: pytest.FixtureRequest) -> Stage:
    made: Stage = request.param()
    return made


def given(n: int, *, cited: bool, page: int | None = None, title: str = "Handbook") -> GivenPassage:
    passage = Passage(id=f"p{n}", source_id="s", source="a.pdf", title=title, text="text", score=1.0, page=page)
    return GivenPassage(n=n, passage=passage, cited=cited)


async def streamed(reply: Reply, parts: Sequence[str]) -> str:
    """Write the parts as they come; the whole text."""
    text = ""
    for part in parts:
        text += part
        await reply.write(text)
    return text


# --- every frontend


@pytest.mark.parametrize("parts", [(), ("The ducks ",), ("The ducks ", "are fed ", "by Ann. 🦆")], ids=len)
async def test_the_whole_answer_is_shown_once(stage: Stage, parts: Sequence[str]) -> None:
    """However much of it was streamed before: nothing, a part, or all."""
    whole = "The ducks are fed by Ann. 🦆"
    reply = await stage.adapter.open_reply(said(1, QUESTION), replay=False)
    await reply.status("Thinking")
    await streamed(reply, parts)
    await reply.finish(Answer(text=whole, reference="r1"))

    assert stage.shown("test-000001").count("ducks") == 1
    assert stage.shown("test-000001").strip() == whole


async def test_a_growing_answer_only_ever_grows(stage: Stage) -> None:
    """Each text begins with the one before, and the person sees the last."""
    reply = await stage.adapter.open_reply(said(1, QUESTION), replay=False)
    before = ""
    text = ""
    for part in ("One.", "\n\nTwo.", "", " Three."):
        text += part
        await reply.write(text)
        shown = stage.shown("test-000001").removesuffix("\n")
        assert shown.startswith(before)
        before = shown

    assert before == "One.\n\nTwo. Three."


async def test_the_sources_that_were_cited_stand_below(stage: Stage) -> None:
    """`[1] title, page N`; without a page where there is none, and no line for what was not cited."""
    passages = (given(1, cited=True, page=4), given(2, cited=False, page=5), given(3, cited=True, title="Notes.md"))
    reply = await stage.adapter.open_reply(said(1, QUESTION), replay=False)
    await reply.finish(Answer(text="Ann [1], or Ben [3].", passages=passages, notes=("12 of 40 messages",)))

    assert stage.shown("test-000001").splitlines() == [
        "Ann [1], or Ben [3].",
        "[1] Handbook, page 4",
        "[3] Notes.md",
        "(12 of 40 messages)",
    ]


@pytest.mark.parametrize("parts", [(), ("The ducks",)], ids=len)
async def test_a_problem_is_one_line_with_its_reference(stage: Stage, parts: Sequence[str]) -> None:
    """Below what was shown before, if anything was."""
    reply = await stage.adapter.open_reply(said(1, QUESTION), replay=False)
    await streamed(reply, parts)
    await reply.fail(Problem(message="No model answers. Is it running?", reference="0a1b"))

    assert stage.shown("test-000001").splitlines() == [*parts, "! No model answers. Is it running? (reference 0a1b)"]


async def test_two_replies_do_not_mix_up_their_texts(stage: Stage) -> None:
    """One after the other, each is shown whole."""
    for number in (1, 2):
        reply = await stage.adapter.open_reply(said(number, QUESTION), replay=False)
        await streamed(reply, [f"answer {number}"])
        await reply.finish(Answer(text=f"answer {number}"))

    assert stage.shown("test-000001").count("answer 1") == 1
    assert stage.shown("test-000002").count("answer 2") == 1


async def test_the_audience_reads_what_every_reader_may(stage: Stage) -> None:
    """Channel and workspace of the message's own place; of private scopes none but its author's."""
    incoming = said(1, QUESTION)

    scopes = (await stage.adapter.audience(incoming)).scopes

    assert {str(Scope.channel(incoming.place)), str(Scope.workspace(incoming.place))} <= scopes
    assert {scope for scope in scopes if scope.startswith("private:")} <= {str(Scope.private(incoming.place, ANN))}


async def test_limits_make_sense(stage: Stage) -> None:
    """Room for an answer, a pace that is no rush backwards, and a name for places."""
    assert stage.adapter.limits.max_chars > 100
    assert stage.adapter.limits.edit_interval_s >= 0
    assert stage.adapter.platform


async def test_entering_and_leaving_is_all_it_takes(stage: Stage) -> None:
    """An adapter that never ran can be left again."""
    async with stage.adapter as adapter:
        assert adapter is stage.adapter


async def test_the_recorder_keeps_everything() -> None:
    """The recording frontend's own promise: notes, texts and the end, in order."""
    adapter = RecordingAdapter()
    reply = await adapter.open_reply(said(1, QUESTION), replay=False)
    await reply.status("Thinking")
    await streamed(reply, ["a", "b"])
    await reply.finish(Answer(text="ab"))

    recorded = adapter.replies["test-000001"]
    assert recorded == RecordedReply(notes=["Thinking"], written=["a", "ab"], answer=Answer(text="ab"))
    assert await adapter.open_reply(said(1, QUESTION), replay=True) is recorded


# --- only the terminal


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """What stands on a terminal's lines at the end, colours taken out."""
    lines = []
    for raw in written.split("\n"):
        line = re.split(r"\r\033\[K", raw)[-1]
        lines.append(re.sub(r"\033\[\d*m", "", line))
    return lines


async def test_the_terminal_s_one_reader_sees_all_that_is_theirs() -> None:
    """Private, channel and workspace of where they sit; nothing of another channel, nothing of another person."""
    where, ann = place("ducks"), Person(id="7", name="Ann")
    scopes = {str(Scope.private(where, ann)), str(Scope.channel(where)), str(Scope.workspace(where))}

    assert audience_of(where, ann).scopes == scopes
    assert audience_of(place("geese"), ann).scopes != scopes
    asked = said(1, QUESTION, by=ann, place=where)
    assert (await ConsoleAdapter(source=io.StringIO(), out=io.StringIO()).audience(asked)).scopes == scopes


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_from_before_the_interruption_is_introduced(fails: bool) -> None:
    """Its question stands before it, on one line and once."""
    out = io.StringIO()
    reply = await ConsoleAdapter(source=io.StringIO(), out=out).open_reply(said(1, QUESTION), replay=True)
    await reply.status("Thinking")
    await reply.write("Ann")
    await (reply.fail(Problem(message="cut", reference="r1")) if fails else reply.finish(Answer(text="Ann does.")))

    first, second, *_ = out.getvalue().splitlines()
    assert first == "(You asked before I was interrupted: Who feeds the ducks in winter?)"
    assert second == ("Ann" if fails else "Ann does.")
    assert out.getvalue().count("You asked") == 1


async def test_a_stopped_answer_says_so() -> None:
    """Once, after what was written so far."""
    out = io.StringIO()
    reply = await ConsoleAdapter(source=io.StringIO(), out=out).open_reply(said(1, QUESTION), replay=False)
    await reply.write("The ducks are")
    await reply.finish(Answer(text="The ducks are", notes=("stopped",), ending="stopped"))

    assert out.getvalue() == "The ducks are\n(stopped)\n"


@pytest.mark.parametrize("written", ["The ducks are fed [", "Something else entirely"])
async def test_an_answer_that_differs_from_what_was_streamed_is_shown_whole(written: str) -> None:
    """Text on a terminal cannot be taken back, so the final text follows on a line of its own."""
    out = io.StringIO()
    reply = await ConsoleAdapter(source=io.StringIO(), out=out).open_reply(said(1, QUESTION), replay=False)
    await reply.write(written)
    await reply.finish(Answer(text="The ducks are fed."))

    assert out.getvalue() == f"{written}\nThe ducks are fed.\n"


async def test_the_trailing_space_of_a_streamed_answer_is_no_difference() -> None:
    """The final text is stripped at its end; it is not shown again for that."""
    out = io.StringIO()
    reply = await ConsoleAdapter(source=io.StringIO(), out=out).open_reply(said(1, QUESTION), replay=False)
    await reply.write("The ducks are fed.\n")
    await reply.finish(Answer(text="The ducks are fed."))

    assert out.getvalue().split() == ["The", "ducks", "are", "fed."]


async def test_the_spinner_shows_the_latest_note_and_leaves_no_trace() -> None:
    """A new note takes the place of the old one, also after the first has been on the screen for a while."""
    out = Terminal()
    reply = ConsoleReply(Screen(out, live=True))
    for note in ("Loading the model", "Loading the model, 40%", "Thinking"):
        await reply.status(note)
        async with asyncio.timeout(2):
            while f"{note}\033" not in out.getvalue():  # noqa: ASYNC110 - the screen tells nobody
                await asyncio.sleep(0.01)
    await reply.write("Ann ")
    await reply.finish(Answer(text="Ann does.", notes=("1 of 1 messages",)))

    assert screen(out.getvalue()) == ["Ann does.", "(1 of 1 messages)", ""]


async def test_a_note_after_the_first_words_does_not_wipe_them() -> None:
    """A sign of life that comes late is not drawn over the line that the answer stands on."""
    out = Terminal()
    reply = ConsoleReply(Screen(out, live=True))
    await reply.write("Ann ")
    await reply.status("Thinking")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await reply.finish(Answer(text="Ann does."))

    assert screen(out.getvalue()) == ["Ann does.", ""]


@dataclass
class Listener:
    """A core that answers by repeating, and keeps what it was given."""

    adapter: ConsoleAdapter
    full: bool = False
    commands: tuple[CommandSpec, ...] = ()

    def __post_init__(self) -> None:
        self.accepted: list[Incoming] = []
        self.invoked: list[tuple[str, str]] = []

    async def accept(self, incoming: Incoming) -> None:
        if self.full:
            raise DataFolderError("No space is left.")
        self.accepted.append(incoming)
        reply = await self.adapter.open_reply(incoming, replay=False)
        await reply.finish(Answer(text=f"re: {incoming.text}"))

    async def command(self, invocation: Invocation, reply: Reply) -> None:
        self.invoked.append((invocation.name, invocation.arguments))
        await reply.finish(Answer(text="done"))

    async def settled(self) -> None:
        """Everything is answered at once."""

    async def stop(self, event_id: str) -> bool:
        return False


async def test_every_piped_line_is_a_message_or_a_command() -> None:
    """Empty lines are nothing, /quit ends, and the ids sort in the order of sending."""
    source = io.StringIO("hello\n\n   \n/learn  a.txt private \nworld\n/quit\nnever asked\n")
    out = io.StringIO()
    adapter = ConsoleAdapter(source=source, out=out, where=place("ducks"), greeting="Welcome")
    core = Listener(adapter)

    await adapter.run(core)

    assert [incoming.text for incoming in core.accepted] == ["hello", "world"]
    assert core.invoked == [("learn", "a.txt private")]
    assert {(incoming.place, incoming.author) for incoming in core.accepted} == {(place("ducks"), me())}
    ids = [incoming.event_id for incoming in core.accepted]
    assert ids == sorted(set(ids))
    assert out.getvalue() == "re: hello\ndone\nre: world\n"
    assert not adapter.failed


async def test_a_message_that_was_not_kept_is_said_so() -> None:
    """The person learns why, the adapter goes on, and the exit code will tell."""
    out = io.StringIO()
    adapter = ConsoleAdapter(source=io.StringIO("hello\n"), out=out)

    await adapter.run(Listener(adapter, full=True))

    assert out.getvalue() == "! No space is left.\n"
    assert adapter.failed


async def test_an_attachment_is_a_file_of_this_machine(tmp_path: Path) -> None:
    """Its bytes are read; one that is not there is named."""
    adapter = ConsoleAdapter(source=io.StringIO(), out=io.StringIO())
    (tmp_path / "a.txt").write_bytes(b"ducks")

    assert await adapter.fetch(Attachment(id="1", filename="a.txt", url=str(tmp_path / "a.txt"))) == b"ducks"
    with pytest.raises(SourceNotFound, match=r"b\.txt cannot be read"):
        await adapter.fetch(Attachment(id="2", filename="b.txt", url=str(tmp_path / "b.txt")))


def test_places_of_the_terminal() -> None:
    """The main conversation, and others by name."""
    assert place() == Place(platform="console", workspace="local", channel="main")
    assert place("ducks").key == "console/local/ducks"
