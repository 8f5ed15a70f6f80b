"""What a part must promise to plug into the core. Small, typed, values only.

Each promise is written once, here; `tests/contracts/` holds one suite per port that every
implementation passes, the fakes that ship with us included.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from bot.messages import (
    Answer,
    Attachment,
    Audience,
    CommandSpec,
    Health,
    Incoming,
    Invocation,
    Learned,
    ModelLimits,
    ModelRequest,
    NewSource,
    Outcome,
    Passage,
    Person,
    Piece,
    Place,
    Problem,
    Progress,
    Removed,
    Retrieval,
    Scope,
    Source,
)

# --- frontend -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLimits:
    """What a platform takes: characters in one message, and seconds between two edits of it."""

    max_chars: int
    edit_interval_s: float
    markdown: bool = True
    rate_limited: bool = True
    """Whoever writes here shares the model with others, so that messages a minute are limited."""
    local_files: bool = False
    """Whoever writes here may name files of this machine to be learned."""
    default_scope: Literal["private", "channel", "workspace"] = "channel"
    """Where something learned here is readable, unless the person says otherwise."""


class Reply(Protocol):
    """One answer on its way to a person. Ends with exactly one `finish` or `fail`."""

    async def status(self, note: str) -> None:
        """Show a passing sign of life ("Loading the model, 40 %"); the next call replaces it."""

    async def write(self, text_so_far: str) -> None:
        """Show the answer as far as it has come. Each text begins with the one before."""

    async def finish(self, answer: Answer) -> None:
        """Show the whole answer, its sources and notes. Safe to repeat after a crash."""

    async def fail(self, problem: Problem) -> None:
        """Show that there is no answer, and why. Safe to repeat after a crash."""


class Inbox(Protocol):
    """The core, as an adapter sees it."""

    @property
    def commands(self) -> tuple[CommandSpec, ...]:
        """The commands that every frontend offers."""

    async def accept(self, incoming: Incoming) -> None:
        """Return once the message is durable; an event id that is known already changes nothing.

        Acknowledge the platform after this returns. Raises `DataFolderError` when nothing was kept.
        """

    async def command(self, invocation: Invocation, reply: Reply) -> None:
        """Carry out a command and end `reply` with its result, or with what was wrong."""

    async def settled(self) -> None:
        """Return when every accepted turn has ended."""

    async def stop(self, event_id: str) -> bool:
        """End a turn now, its model request included; false when there is no such turn to stop.

        The turn still ends in its reply: with what was written so far, marked as stopped.
        """


class ChatAdapter(AbstractAsyncContextManager["ChatAdapter"], Protocol):
    """A frontend. Entering connects nothing; `run` does, and returns when the frontend ends."""

    @property
    def platform(self) -> str:
        """The `Place.platform` of everything that comes from here."""

    @property
    def limits(self) -> AdapterLimits:
        """What the platform takes."""

    async def run(self, inbox: Inbox) -> None:
        """Turn platform events into `Incoming` and `Invocation` until the frontend ends."""

    async def open_reply(self, incoming: Incoming, *, replay: bool) -> Reply:
        """Open the reply to a message. `replay`: an earlier process may have begun, or even sent it.

        Raises `DeliveryFailed`.
        """

    async def audience(self, incoming: Incoming) -> Audience:
        """What every reader of the answer to this message may see."""

    async def fetch(self, attachment: Attachment) -> bytes:
        """The attachment's bytes. Raises `SourceError`."""


# --- model --------------------------------------------------------------------------------------


class ModelBackend(Protocol):
    """A model server, or something that behaves like one."""

    def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        """Answer piece by piece; the last piece is `Finished`. `Usage`, where known, comes before it.

        Closing the iterator early (`aclose`, cancellation) ends the request on the server too.
        Raises `ModelError`: before the first piece when nothing came, or later when the stream was cut.
        """

    async def limits(self) -> ModelLimits:
        """The window and the profile, from the server where it tells. Raises `ModelError`."""

    async def count_tokens(self, request: ModelRequest) -> int:
        """Tokens of the prompt: by the server's own counter where it has one, else an estimate."""

    async def health(self) -> Health:
        """Is it there, and is the model there? Never raises `ModelError`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendOptions:
    """What a backend is opened with; `extra` holds what only this kind knows."""

    name: str
    data_dir: Path
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    model: str = ""
    context_tokens: int | None = None
    timeout_s: float = 120.0
    extra: Mapping[str, Any] = field(default_factory=dict)


OpenBackend = Callable[[BackendOptions], AbstractAsyncContextManager[ModelBackend]]


# --- knowledge ----------------------------------------------------------------------------------

OnProgress = Callable[[Progress], None]


class Retriever(Protocol):
    """Finds passages."""

    async def search(self, query: str, audience: Audience, k: int) -> Retrieval:
        """At most `k` passages that `audience` may read, best first; none when none is good enough.

        Raises `KnowledgeUnavailable`.
        """


class KnowledgeBase(Retriever, Protocol):
    """Everything that was learned. Every chunk has one scope, checked inside the index."""

    async def add(self, source: NewSource, scope: Scope, *, added_by: str, progress: OnProgress) -> Learned:
        """Learn a document; the same bytes in the same scope again change nothing.

        Changed bytes under a known name replace the old chunks. Raises `SourceError`,
        `KnowledgeUnavailable`; after an error the knowledge is as it was.
        """

    async def sources(self, audience: Audience) -> tuple[Source, ...]:
        """The sources that this audience may read, newest first."""

    async def find(self, reference: str, audience: Audience) -> Source:
        """The one source of that id, unambiguous start of an id, title or address. Raises `SourceNotFound`."""

    async def show(self, source: Source) -> tuple[Passage, ...]:
        """All chunks of a source, in reading order."""

    async def remove(self, source: Source) -> Removed:
        """Remove file record, chunks and vectors, and count what is left in the index."""

    async def rebuild(self, progress: OnProgress) -> int:
        """Encode anew what another encoder made (`EncoderChanged`); how many chunks that was. Safe to repeat."""

    async def health(self) -> Sequence[Health]:
        """One line for the index, one for the encoder. Never raises `KnowledgeError`."""


class SourceRegistry(Protocol):
    """The ledger of learned sources, kept beside the conversations."""

    async def put_source(self, source: Source) -> None:
        """Insert or replace by id."""

    async def sources(self, scopes: frozenset[str]) -> tuple[Source, ...]:
        """Those whose `str(scope)` is in `scopes`, newest first."""

    async def count_sources(self, scopes: frozenset[str]) -> int:
        """How many those are."""

    async def delete_source(self, source_id: str) -> None:
        """Forget it; an unknown id changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnowledgeOptions:
    """What the knowledge is opened with. Without `qdrant_url` the index lives in `data_dir`."""

    data_dir: Path
    qdrant_url: str = ""
    qdrant_api_key: str = field(default="", repr=False)
    max_file_bytes: int = 50_000_000
    fetch_timeout_s: float = 20.0
    allow_private_addresses: bool = False


OpenKnowledge = Callable[[KnowledgeOptions, SourceRegistry], AbstractAsyncContextManager[KnowledgeBase]]


# --- memory -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredMessage:
    """One message of a conversation. `id` grows with time within the whole store.

    `label` is the name the speaker goes by in this place: fixed when they first spoke there.
    """

    id: int
    event_id: str
    role: Literal["user", "assistant"]
    author_id: str
    label: str
    text: str
    sent_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the messages up to `upto_id` said, in short. Blocks are only ever appended or merged whole."""

    id: int
    text: str
    upto_id: int
    messages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """A fact that is never summarised away."""

    id: int
    text: str
    author_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """What a place remembers: pins, summary blocks, and the messages since the last block."""

    pins: tuple[Pin, ...] = ()
    summaries: tuple[Summary, ...] = ()
    messages: tuple[StoredMessage, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """What an erasure removed."""

    messages: int = 0
    summaries: int = 0
    pins: int = 0
    outcomes: int = 0


class Store(SourceRegistry, Protocol):
    """Conversations, sources and what came of each turn. Every method is one transaction.

    Raises `StoreDamaged` and `StorageFull`.
    """

    async def begin_turn(self, incoming: Incoming) -> Outcome | None:
        """Keep the user's message, once per event id; the outcome, when the turn has one already."""

    async def end_turn(self, incoming: Incoming, outcome: Outcome) -> None:
        """Keep the outcome and, when it is an answer, the assistant's message. Once per event id."""

    async def conversation(self, place: Place) -> Conversation:
        """All that the place remembers."""

    async def last_outcome(self, place: Place) -> Outcome | None:
        """How the newest ended turn of a place ended, for `/why`."""

    async def outcome(self, reference: str) -> Outcome | None:
        """How the turn with that reference ended."""

    async def compact(self, place: Place, *, replaces: Sequence[int], text: str, upto_id: int, messages: int) -> None:
        """Append a summary block for the messages up to `upto_id`; blocks in `replaces` merge into it."""

    async def pin(self, place: Place, author: Person, text: str) -> None:
        """Keep a fact for good."""

    async def forget(self, place: Place, author: Person | None = None) -> Forgotten:
        """Erase what the place remembers, or only what one person said there and what was made of it."""

    async def request_stop(self, event_id: str) -> None:
        """Keep, across restarts, that this turn is to be stopped."""

    async def stop_requested(self, event_id: str) -> bool:
        """Was it?"""


# --- turns --------------------------------------------------------------------------------------


class Think(Protocol):
    """The core, as the engine sees it: what comes of a message. Paid for once, unless a crash cuts it short."""

    def __call__(self, incoming: Incoming, *, replay: bool) -> Awaitable[Outcome]:
        """Retrieve and generate. `replay`: an earlier process may have begun.

        Expected errors end in a `Problem`. Cancelled when the person stops the turn and when the process
        ends; let `CancelledError` travel on.
        """


class Deliver(Protocol):
    """The way back to the person."""

    def __call__(self, incoming: Incoming, outcome: Outcome, *, replay: bool) -> Awaitable[None]:
        """Show the outcome. `replay`: an earlier process or attempt may have begun, or even sent it.

        Called again, later, after an error that is `retryable`.
        """


Stopped = Callable[[Incoming], Awaitable[Outcome]]
"""What a turn ends in that a person stopped: what was written so far."""
