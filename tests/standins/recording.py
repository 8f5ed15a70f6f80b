"""A frontend that records what it would show."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from bot.messages import Answer, Attachment, Audience, Incoming, Person, Place, Problem, Scope
from bot.ports import AdapterLimits, Inbox, Reply


@dataclass
class RecordedReply:
    """One reply, in the order of what happened to it."""

    notes: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    answer: Answer | None = None
    problem: Problem | None = None

    async def status(self, note: str) -> None:
        self.notes.append(note)

    async def write(self, text_so_far: str) -> None:
        self.written.append(text_so_far)

    async def finish(self, answer: Answer) -> None:
        self.answer = answer

    async def fail(self, problem: Problem) -> None:
        self.problem = problem


@dataclass
class RecordingAdapter:
    """Everybody here may read the channel and the workspace."""

    platform: str = "test"
    limits: AdapterLimits = field(default_factory=lambda: AdapterLimits(max_chars=2000, edit_interval_s=0.0))
    replies: dict[str, RecordedReply] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def run(self, inbox: Inbox) -> None:
        """Events are handed over by the tests."""

    async def open_reply(self, incoming: Incoming, *, replay: bool) -> Reply:
        return self.replies.setdefault(incoming.event_id, RecordedReply())

    async def audience(self, incoming: Incoming) -> Audience:
        place = incoming.place
        return Audience(scopes=frozenset({str(Scope.channel(place)), str(Scope.workspace(place))}))

    async def fetch(self, attachment: Attachment) -> bytes:
        return b""


HERE = Place(platform="test", workspace="w", channel="c")
ANN = Person(id="1", name="Ann")
BEN = Person(id="2", name="Ben")


def said(number: int, text: str, *, by: Person = ANN, place: Place = HERE) -> Incoming:
    """The message with that number."""
    sent_at = datetime(2026, 1, 1, tzinfo=UTC)
    return Incoming(event_id=f"test-{number:06d}", place=place, author=by, text=text, sent_at=sent_at)
