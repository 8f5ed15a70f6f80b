"""The values that cross a port: frozen, keyword-only, free of any vendor's words.

Everything here can be turned into JSON and back by pydantic's `TypeAdapter`, because the engine
writes an `Incoming` and an `Outcome` to disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import quote

# --- who and where ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a conversation is held; equal places share one memory."""

    platform: str
    workspace: str
    channel: str
    thread: str = ""

    @property
    def key(self) -> str:
        """One line of text that names this place, the same for ever: `console/local/main`."""
        parts = [self.platform, self.workspace, self.channel]
        return "/".join(quote(part, safe="") for part in (*parts, *([self.thread] if self.thread else [])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody who writes; `id` is the platform's own and never changes, `name` may."""

    id: str
    name: str
    is_bot: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Who may read a piece of knowledge: one person, one channel, or a whole workspace."""

    kind: Literal["private", "channel", "workspace"]
    key: str

    @classmethod
    def private(cls, place: Place, person: Person) -> "Scope":
        return cls(kind="private", key=_join(place.platform, place.workspace, person.id))

    @classmethod
    def channel(cls, place: Place) -> "Scope":
        return cls(kind="channel", key=_join(place.platform, place.workspace, place.channel))

    @classmethod
    def workspace(cls, place: Place) -> "Scope":
        return cls(kind="workspace", key=_join(place.platform, place.workspace))

    def __str__(self) -> str:
        """The label stored on every chunk and named in every filter: `channel:console/local/main`."""
        return f"{self.kind}:{self.key}"


def _join(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audience:
    """What every reader of an answer may see, as scope labels (`str(Scope)`).

    An answer may use a passage only when the passage's scope is in this set.
    """

    scopes: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """A file that came with a message; the adapter fetches its bytes."""

    id: str
    filename: str
    media_type: str = ""
    size_bytes: int = 0
    url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """One message to be answered.

    `event_id` is unique in the whole installation; within a place, ids sort in the order of sending.
    """

    event_id: str
    place: Place
    author: Person
    text: str
    sent_at: datetime
    attachments: tuple[Attachment, ...] = ()
    reply_to: str | None = None
    private: bool = False
    """Only the author will see the answer (a direct or ephemeral message)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """A command that somebody gave, already taken apart: `/knowledge remove 3f2a`."""

    event_id: str
    place: Place
    author: Person
    name: str
    arguments: str = ""
    attachments: tuple[Attachment, ...] = ()
    private: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandSpec:
    """A command as every frontend shows it: name, the words after it, one line of help."""

    name: str
    usage: str
    summary: str


# --- model --------------------------------------------------------------------------------------

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A picture for a vision model."""

    media_type: str
    data: bytes = field(repr=False)
    alt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """The model asks for a tool; `arguments` is the JSON text it wrote, unchecked."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSpec:
    """A tool offered to the model; `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One message of a model request."""

    role: Role
    content: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """A prompt that fits the window, and how to answer it."""

    messages: tuple[ChatMessage, ...]
    max_tokens: int
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    json_schema: Mapping[str, object] | None = None
    tools: tuple[ToolSpec, ...] = ()
    conversation: str = ""
    """A stable, anonymous name of the conversation, for a server's prefix cache or a gateway's log."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's thinking; never shown."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The model is not answering yet: loading, downloading, queued. `done` runs from 0 to 1."""

    note: str
    done: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens as the server counted them; `cached_tokens` of the prompt came from its prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "cut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last piece of every stream that did not raise; `model` is the name the server gave."""

    reason: FinishReason
    model: str = ""


Piece = Text | Reasoning | Waiting | ToolCall | Usage | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """How a model of some size wants to be asked. Figures: measured on the embedded models."""

    name: str
    passage_tokens: int
    """Room for retrieved text. A small model reads 70 tokens a second; 400 is six seconds."""
    max_passages: int
    history_share: float
    """Part of the window that history may fill before it is compacted."""
    temperature: float | None
    short: bool
    """Short system prompt, sources named once more at the end, stop strings sent."""
    declines: bool
    """Outside the knowledge, decline a question of fact instead of answering from the weights."""


STANDARD = Profile(
    name="standard",
    passage_tokens=2400,
    max_passages=8,
    history_share=0.8,
    temperature=None,
    short=False,
    declines=False,
)
SMALL = Profile(
    name="small", passage_tokens=400, max_passages=6, history_share=0.8, temperature=0.0, short=True, declines=True
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLimits:
    """What the server behind a backend can take, as it says itself where it does."""

    model: str
    context_tokens: int
    output_tokens: int
    profile: Profile = STANDARD
    local: bool = False
    """The text never leaves this machine."""
    vision: bool = False
    tools: bool = False


# --- knowledge ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSource:
    """Something to learn: a path or a URL, or bytes that somebody handed over under that name."""

    uri: str
    title: str = ""
    content: bytes | None = field(default=None, repr=False)
    media_type: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A learned document. `id` is short enough to type; `digest` is the sha256 of its bytes."""

    id: str
    uri: str
    title: str
    scope: Scope
    digest: str
    chunks: int
    pages: int | None
    size_bytes: int
    learned_at: datetime
    added_by: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What learning a source did; `new` is false when the same bytes were known already."""

    source: Source
    new: bool
    replaced: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """A removal with its proof: chunks counted in the index before and after."""

    source: Source
    chunks_before: int
    chunks_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A chunk of a source as it was found. `score` is the fused rank score, higher is better."""

    id: str
    source_id: str
    source: str
    title: str
    text: str
    score: float
    page: int | None = None
    heading: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """What the knowledge has to say, best passage first; none when nothing passed the floor.

    `sources_searched` counts the sources that this audience may read; 0 means there is nothing to ask.
    """

    passages: tuple[Passage, ...] = ()
    sources_searched: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far long work has come, for a person to see; `total` is None while unknown."""

    stage: str
    done: int = 0
    total: int | None = None


# --- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPassage:
    """A passage as the model was given it: under number `n`, and whether the answer cites it."""

    n: int
    passage: Passage
    cited: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What goes back to the person. `text` is final: clean, cited, whole."""

    text: str
    reference: str = ""
    passages: tuple[GivenPassage, ...] = ()
    notes: tuple[str, ...] = ()
    """Honest remarks for the footer: what was left out, that the answer was stopped or cut."""
    model: str = ""
    usage: Usage | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    ending: Literal["complete", "stopped", "cut", "length"] = "complete"

    @property
    def cited(self) -> tuple[GivenPassage, ...]:
        return tuple(given for given in self.passages if given.cited)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A failure in one line that says what to do, with the reference under which the log has the rest."""

    message: str
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a turn ended: exactly one of the two is set."""

    answer: Answer | None = None
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """One line of `chinwag doctor`: ok, or what is wrong and the exact fix."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
