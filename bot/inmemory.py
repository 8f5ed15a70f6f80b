"""The `Store` without a file: for trying things out and for tests. It ends with its process."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import TypeAdapter

from bot.messages import Incoming, Outcome, Person, Place, Source
from bot.ports import Conversation, Forgotten, Pin, StoredMessage, Summary

OUTCOME = TypeAdapter(Outcome)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ended:
    """An outcome as JSON, as a file would keep it: what the caller still holds cannot change it."""

    event_id: str
    reference: str
    body: bytes


@dataclass(kw_only=True, slots=True)
class _Memory:
    """What one place holds; everything in the order in which it came."""

    pins: list[Pin] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    messages: list[StoredMessage] = field(default_factory=list)
    outcomes: list[_Ended] = field(default_factory=list)


class MemoryStore:
    """The `Store` in this process's memory. Passes the same tests as the one on a database."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._places: dict[str, _Memory] = {}
        self._sources: dict[str, Source] = {}
        self._stops: set[str] = set()

    # --- turns

    async def begin_turn(self, incoming: Incoming) -> Outcome | None:
        ended = next((each for each in self._all_outcomes() if each.event_id == incoming.event_id), None)
        if ended is not None:
            return OUTCOME.validate_json(ended.body)
        author = incoming.author
        label = _label(self._memory(incoming.place).messages, author)
        self._keep(incoming, role="user", author_id=author.id, label=label, text=incoming.text)
        return None

    async def end_turn(self, incoming: Incoming, outcome: Outcome) -> None:
        ended = outcome.answer or outcome.problem
        if ended is None:
            raise ValueError("an outcome holds an answer or a problem")
        if not self._kept(incoming.event_id, "user"):
            return  # erased while it was being answered: the answer is part of what was erased
        if any(each.event_id == incoming.event_id for each in self._all_outcomes()):
            return
        body = OUTCOME.dump_json(outcome)
        kept = _Ended(event_id=incoming.event_id, reference=ended.reference, body=body)
        self._memory(incoming.place).outcomes.append(kept)
        if outcome.answer is not None and outcome.answer.text:
            self._keep(incoming, role="assistant", author_id="", label="", text=outcome.answer.text)

    async def last_outcome(self, place: Place) -> Outcome | None:
        ended = self._memory(place).outcomes
        return OUTCOME.validate_json(ended[-1].body) if ended else None

    async def outcome(self, reference: str) -> Outcome | None:
        found = next((each for each in self._all_outcomes() if each.reference == reference), None)
        return OUTCOME.validate_json(found.body) if found else None

    async def request_stop(self, event_id: str) -> None:
        self._stops.add(event_id)

    async def stop_requested(self, event_id: str) -> bool:
        return event_id in self._stops

    # --- memory

    async def conversation(self, place: Place) -> Conversation:
        memory = self._memory(place)
        upto = max((block.upto_id for block in memory.summaries), default=0)
        return Conversation(
            pins=tuple(memory.pins),
            summaries=tuple(memory.summaries),
            messages=tuple(message for message in memory.messages if message.id > upto),
        )

    async def compact(self, place: Place, *, replaces: Sequence[int], text: str, upto_id: int, messages: int) -> None:
        memory = self._memory(place)
        memory.summaries = [block for block in memory.summaries if block.id not in replaces]
        memory.summaries.append(Summary(id=next(self._ids), text=text, upto_id=upto_id, messages=messages))

    async def pin(self, place: Place, author: Person, text: str) -> None:
        self._memory(place).pins.append(Pin(id=next(self._ids), text=text, author_id=author.id))

    async def forget(self, place: Place, author: Person | None = None) -> Forgotten:
        before = self._memory(place)
        after = _Memory() if author is None else _without(before, author)
        self._places[place.key] = after
        return Forgotten(
            messages=len(before.messages) - len(after.messages),
            summaries=len(before.summaries) - len(after.summaries),
            pins=len(before.pins) - len(after.pins),
            outcomes=len(before.outcomes) - len(after.outcomes),
        )

    # --- sources

    async def put_source(self, source: Source) -> None:
        self._sources[source.id] = source

    async def sources(self, scopes: frozenset[str]) -> tuple[Source, ...]:
        readable = sorted(self._readable(scopes), key=lambda source: source.id)
        return tuple(sorted(readable, key=lambda source: source.learned_at, reverse=True))

    async def count_sources(self, scopes: frozenset[str]) -> int:
        return len(self._readable(scopes))

    async def delete_source(self, source_id: str) -> None:
        self._sources.pop(source_id, None)

    # --- where it is kept

    def _memory(self, place: Place) -> _Memory:
        return self._places.setdefault(place.key, _Memory())

    def _all_outcomes(self) -> Iterable[_Ended]:
        return (each for memory in self._places.values() for each in memory.outcomes)

    def _kept(self, event_id: str, role: str) -> bool:
        kept = (message for memory in self._places.values() for message in memory.messages)
        return any(message.event_id == event_id and message.role == role for message in kept)

    def _keep(
        self, incoming: Incoming, *, role: Literal["user", "assistant"], author_id: str, label: str, text: str
    ) -> None:
        if self._kept(incoming.event_id, role):
            return
        message = StoredMessage(
            id=next(self._ids),
            event_id=incoming.event_id,
            role=role,
            author_id=author_id,
            label=label,
            text=text,
            sent_at=incoming.sent_at if role == "user" else datetime.now(UTC),
        )
        self._memory(incoming.place).messages.append(message)

    def _readable(self, scopes: frozenset[str]) -> list[Source]:
        return [source for source in self._sources.values() if str(source.scope) in scopes]


def _without(memory: _Memory, author: Person) -> _Memory:
    """What is left when one person's words go: no answer to them, no summary that may have been made of them."""
    own = [message for message in memory.messages if message.author_id == author.id]
    events = {message.event_id for message in own}
    upto = min((message.id for message in own), default=None)
    return _Memory(
        pins=[pin for pin in memory.pins if pin.author_id != author.id],
        summaries=[block for block in memory.summaries if upto is None or block.upto_id < upto],
        messages=[message for message in memory.messages if message.event_id not in events],
        outcomes=[ended for ended in memory.outcomes if ended.event_id not in events],
    )


def _label(messages: Sequence[StoredMessage], author: Person) -> str:
    """The name a person goes by in a place: theirs when they first spoke there, told apart from namesakes."""
    said = [message for message in messages if message.role == "user"]
    known = next((message.label for message in said if message.author_id == author.id), "")
    if known:
        return known
    name = " ".join(author.name.replace(":", " ").split()) or "Somebody"
    taken = {message.label for message in said}
    label, number = name, 2
    while label in taken:
        label, number = f"{name} ({number})", number + 1
    return label
