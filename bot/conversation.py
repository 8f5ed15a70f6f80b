"""A turn from message to answer: memory, knowledge, prompt, model, memory again. The engine decides when it runs."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from bot import log
from bot.answer import AnswerFilter, given
from bot.delivery import LiveReply
from bot.errors import (
    ChinwagError,
    DeliveryFailed,
    KnowledgeError,
    MissingExtra,
    ModelBroke,
    ModelError,
    TooManyMessages,
)
from bot.memory import Room, TokenEstimate, extract, plan, summarise
from bot.messages import (
    Answer,
    Audience,
    ChatMessage,
    Finished,
    Incoming,
    ModelLimits,
    ModelRequest,
    Outcome,
    Place,
    Problem,
    Retrieval,
    Text,
    Usage,
    Waiting,
)
from bot.policy import DECLINED, RateLimit, kind_of, sorting_request, was_spoken_of
from bot.ports import ChatAdapter, Conversation, KnowledgeBase, ModelBackend, Store
from bot.prompt import Persona, Prompt, compose, front, system_text

OUTSIDE_DECLINE = (
    "(Nothing in the learned documents matches this message. If it asks for a fact that was not said in this "
    'conversation, reply only: "{sentence}" Otherwise just reply.)'
)
OUTSIDE_SAY = (
    "(Nothing in the learned documents matches this message. If you answer with facts, begin by saying that they are "
    "not from the learned documents.)"
)
SUMMARISE = (
    "You keep the notes of a conversation. Rewrite the notes and messages below as short notes, one fact a line: "
    "names, numbers, dates, wishes, decisions, who said them. Keep every fact of the notes. No introduction."
)

logger = log.get("conversation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How answers are made here; from the settings."""

    persona: Persona
    max_tokens: int = 1024
    temperature: float | None = None
    seed: int | None = None
    footer: bool = True
    outside: str = "auto"
    passages: int = 6
    rate_per_minute: int = 0


@dataclass(kw_only=True, slots=True)
class _Turn:
    """A turn that runs now, so that stopping it can keep what was written."""

    live: LiveReply | None = None
    prompt: Prompt | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    cited: frozenset[int] = frozenset()
    filling: bool = False
    """The next question may have to wait for a summary."""


class Conversations:
    """The core's two steps, `think` and `deliver`, and what a stopped turn ends in."""

    def __init__(
        self,
        *,
        store: Store,
        backend: ModelBackend,
        knowledge: KnowledgeBase | None,
        adapters: Mapping[str, ChatAdapter],
        manner: Manner,
    ) -> None:
        self._store = store
        self._backend = backend
        self._knowledge = knowledge
        self._adapters = adapters
        self._manner = manner
        self._estimate = TokenEstimate()
        self._rate = RateLimit(manner.rate_per_minute)
        self._running: dict[str, _Turn] = {}
        self._folding: dict[str, asyncio.Task[None]] = {}

    # --- the engine's calls

    async def think(self, incoming: Incoming, *, replay: bool) -> Outcome:
        """Answer a message; expected errors end in a `Problem`, and either is kept before it is returned."""
        turn = self._running[incoming.event_id] = _Turn()
        try:
            known = await self._store.begin_turn(incoming)
            if known is not None:
                return known
            if replay and await self._store.stop_requested(incoming.event_id):
                return await self.stopped(incoming)
            self._admit(incoming, replay=replay)
            outcome = Outcome(answer=await self._answer(incoming, turn, replay=replay))
        except ChinwagError as error:
            outcome = Outcome(problem=self._problem(incoming, error))
        finally:
            if self._running.get(incoming.event_id) is turn and not turn.live:
                del self._running[incoming.event_id]
        with contextlib.suppress(ChinwagError):  # the engine's checkpoint keeps the outcome in any case
            await self._store.end_turn(incoming, outcome)
        return outcome

    async def stopped(self, incoming: Incoming) -> Outcome:
        """What a stopped turn ends in: the text so far, marked."""
        turn = self._running.get(incoming.event_id, _Turn())
        text = turn.live.text.strip() if turn.live else ""
        answer = Answer(
            text=text,
            reference=log.reference(incoming.event_id),
            passages=given(turn.prompt.passages, turn.cited) if turn.prompt else (),
            notes=("stopped",),
            timings_ms=turn.timings_ms,
            ending="stopped",
        )
        outcome = Outcome(answer=answer)
        with contextlib.suppress(ChinwagError):
            await self._store.begin_turn(incoming)
            await self._store.end_turn(incoming, outcome)
        return outcome

    async def deliver(self, incoming: Incoming, outcome: Outcome, *, replay: bool) -> None:
        """Show the outcome. Raises `DeliveryFailed` when the platform did not take it."""
        turn = self._running.pop(incoming.event_id, None)
        if turn is not None and turn.live is not None:
            reply = turn.live.reply
        else:
            reply = await self._adapter(incoming.place).open_reply(incoming, replay=replay)
        if outcome.answer is not None:
            await reply.finish(outcome.answer)
        elif outcome.problem is not None:
            await reply.fail(outcome.problem)
        if turn is not None and turn.filling:
            self._fold_later(incoming)

    async def aclose(self) -> None:
        """End what runs in the background; it will be done again when it is needed."""
        for task in list(self._folding.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # --- one answer

    def _admit(self, incoming: Incoming, *, replay: bool) -> None:
        """Raises `TooManyMessages`. A turn that was admitted before a crash is not counted again."""
        if replay or not self._adapter(incoming.place).limits.rate_limited:
            return
        wait_s = self._rate.wait_s(incoming)
        if wait_s > 0:
            raise TooManyMessages(
                f"That is more than {self._manner.rate_per_minute} messages in a minute. "
                f"Send it again in {wait_s:.0f} seconds.",
                retry_after_s=wait_s,
            )

    async def _answer(self, incoming: Incoming, turn: _Turn, *, replay: bool) -> Answer:
        began = time.perf_counter()
        adapter = self._adapter(incoming.place)
        live = turn.live = LiveReply(await adapter.open_reply(incoming, replay=replay), adapter.limits.edit_interval_s)
        if incoming.place.key in self._folding:
            await live.status("Summarising earlier messages")
            await asyncio.shield(self._folding[incoming.place.key])
        limits = await self._backend.limits()
        room = Room.of(limits, self._manner.max_tokens)
        audience = await adapter.audience(incoming)
        found, missing = await self._look_up(incoming, audience, limits, live)
        turn.timings_ms["retrieve"] = _ms_since(began)
        conversation = await self._store.conversation(incoming.place)
        if self._needs_folding(conversation, room, limits, incoming.text):
            await live.status("Summarising earlier messages")
            await self._fold(incoming.place, limits, self._estimate.text(incoming.text))
            conversation = await self._store.conversation(incoming.place)
        outside = await self._outside(incoming, conversation, found, limits)
        if outside is None:
            return self._declined(incoming, turn, found, began)
        prompt = turn.prompt = self._compose(incoming, conversation, found, limits, room, outside)
        turn.timings_ms["prepare"] = _ms_since(began)
        answer = await self._generate(incoming, conversation, prompt, live, turn, began)
        filled = prompt.estimated_tokens + self._estimate.text(answer.text)
        turn.filling = filled > room.prompt * limits.profile.history_share * 0.7
        notes = [*self._context_notes(prompt, found, answer), *missing]
        return replace(answer, notes=(*notes, *answer.notes), timings_ms=turn.timings_ms)

    async def _look_up(
        self, incoming: Incoming, audience: Audience, limits: ModelLimits, live: LiveReply
    ) -> tuple[Retrieval, list[str]]:
        """Passages for the message, and what has to be said when there could be none."""
        if self._knowledge is None:
            return Retrieval(), []
        k = min(self._manner.passages, limits.profile.max_passages)
        await live.status("Looking through the knowledge")
        try:
            return await self._knowledge.search(incoming.text, audience, k), []
        except (KnowledgeError, MissingExtra) as error:
            logger.warning("answering without knowledge", error=str(error), reference=log.reference(incoming.event_id))
            return Retrieval(), ["the knowledge is away; answered without it"]

    async def _outside(
        self, incoming: Incoming, conversation: Conversation, found: Retrieval, limits: ModelLimits
    ) -> str | None:
        """What the model is told when the knowledge has nothing; None to decline without asking it."""
        if not found.sources_searched or found.passages:
            return ""
        declines = limits.profile.declines if self._manner.outside == "auto" else self._manner.outside == "decline"
        if not declines:
            return OUTSIDE_SAY
        if was_spoken_of(incoming.text, conversation, incoming.event_id):
            return ""
        try:
            kind = kind_of(await self._write(sorting_request(incoming.text)))
        except ModelError as error:
            logger.warning("could not sort the message", error=str(error), reference=log.reference(incoming.event_id))
            kind = ""
        return None if kind == "fact" else "" if kind else OUTSIDE_DECLINE.format(sentence=DECLINED)

    def _declined(self, incoming: Incoming, turn: _Turn, found: Retrieval, began: float) -> Answer:
        turn.timings_ms["total"] = _ms_since(began)
        return Answer(
            text=DECLINED,
            reference=log.reference(incoming.event_id),
            notes=(_nothing_found(found),) if self._manner.footer else (),
            timings_ms=turn.timings_ms,
        )

    def _compose(
        self,
        incoming: Incoming,
        conversation: Conversation,
        found: Retrieval,
        limits: ModelLimits,
        room: Room,
        outside: str,
    ) -> Prompt:
        shared = self._shared(conversation, incoming)
        return compose(
            conversation=conversation,
            event_id=incoming.event_id,
            limits=limits,
            room=room,
            system=self._system(limits, shared=shared),
            shared=shared,
            passages=found.passages,
            outside=outside,
            estimate=self._estimate,
            temperature=self._manner.temperature,
            seed=self._manner.seed,
            place=log.reference(incoming.place.key),
        )

    async def _generate(
        self, incoming: Incoming, conversation: Conversation, prompt: Prompt, live: LiveReply, turn: _Turn, began: float
    ) -> Answer:
        speakers = {message.label for message in conversation.messages if message.role == "user"}
        clean = AnswerFilter(
            persona=self._manner.persona.name, speakers=sorted(speakers), passages=len(prompt.passages)
        )
        usage, finished = None, None
        count = len(prompt.passages)
        await live.status(f"Reading {count} passages" if count > 1 else "Thinking")
        try:
            async with live.showing(), aclosing(self._backend.stream(prompt.request)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if type(piece) is Text:
                        if "first_token" not in turn.timings_ms:
                            turn.timings_ms["first_token"] = _ms_since(began)
                        if shown := clean.feed(piece.text):
                            live.add(shown)
                            turn.cited = clean.cited
                        if clean.ended:
                            break
                    elif isinstance(piece, Waiting):
                        await live.status(_waiting(piece))
                    elif isinstance(piece, Usage):
                        usage = piece
                    elif isinstance(piece, Finished):
                        finished = piece
                if rest := clean.close():
                    live.add(rest)
                turn.cited = clean.cited
        except ModelError as error:
            if not live.text.strip():
                raise
            live.add(clean.close())
            logger.warning("the answer was cut", reference=log.reference(incoming.event_id), error=str(error))
            finished = Finished(reason="cut")
        turn.timings_ms["total"] = _ms_since(began)
        return self._finished(incoming, prompt, live.text, clean, usage, finished)

    def _finished(
        self,
        incoming: Incoming,
        prompt: Prompt,
        text: str,
        clean: AnswerFilter,
        usage: Usage | None,
        finished: Finished | None,
    ) -> Answer:
        if not text.strip():
            raise ModelBroke("The model gave an empty answer. Ask again, or put the question another way.")
        if usage is not None:
            self._estimate.learn(prompt.estimated_tokens, usage.prompt_tokens)
        reason = finished.reason if finished else "stop"
        ending = {"cut": "cut", "length": "length"}.get(reason, "complete")
        notes = {
            "cut": ("the connection broke; this answer is not whole",),
            "length": ("the answer reached its longest length",),
        }
        return Answer(
            text=text.rstrip(),
            reference=log.reference(incoming.event_id),
            passages=given(prompt.passages, clean.cited),
            notes=notes.get(reason, ()),
            model=finished.model if finished else "",
            usage=usage,
            ending="cut" if ending == "cut" else "length" if ending == "length" else "complete",
        )

    # --- folding old messages into summaries

    def _needs_folding(self, conversation: Conversation, room: Room, limits: ModelLimits, question: str) -> bool:
        return self._plan(conversation, room, limits, self._estimate.text(question)) is not None

    def _plan(self, conversation: Conversation, room: Room, limits: ModelLimits, question_tokens: int):  # type: ignore[no-untyped-def]
        shared = len({m.author_id for m in conversation.messages if m.role == "user"}) > 1
        bare = Conversation(pins=conversation.pins)
        fixed = self._estimate.text(front(self._system(limits, shared=shared), bare))
        tail = min(limits.profile.passage_tokens + question_tokens + 150, room.prompt // 2)
        return plan(
            conversation,
            fixed=fixed,
            room=room,
            tail=tail,
            share=limits.profile.history_share,
            estimate=self._estimate,
        )

    def _fold_later(self, incoming: Incoming) -> None:
        """After an answer, while the person reads: fold already what the next question would have to wait for."""
        key = incoming.place.key
        if key in self._folding:
            return
        task = self._folding[key] = asyncio.create_task(self._fold_when_full(incoming.place))
        task.add_done_callback(lambda _: self._folding.pop(key, None))

    async def _fold_when_full(self, place: Place) -> None:
        try:
            limits = await self._backend.limits()
            await self._fold(place, limits)
        except ChinwagError as error:
            logger.warning("could not summarise", error=str(error), place=place.key)

    async def _fold(self, place: Place, limits: ModelLimits, question_tokens: int = 0) -> None:
        conversation = await self._store.conversation(place)
        room = Room.of(limits, self._manner.max_tokens)
        fold = self._plan(conversation, room, limits, question_tokens)
        if fold is None:
            return
        try:
            text = await summarise(fold, self._summarise, room=room, estimate=self._estimate)
        except ModelError as error:
            logger.warning("summarised without a model", error=str(error), place=place.key)
            text = extract(fold, room=room, estimate=self._estimate)
        await self._store.compact(
            place,
            replaces=[block.id for block in fold.merge],
            text=text,
            upto_id=max([m.id for m in fold.messages] + [b.upto_id for b in conversation.summaries]),
            messages=len(fold.messages) + sum(block.messages for block in fold.merge),
        )

    async def _summarise(self, text: str, max_tokens: int) -> str:
        request = ModelRequest(
            messages=(ChatMessage(role="system", content=SUMMARISE), ChatMessage(role="user", content=text)),
            max_tokens=max_tokens,
            temperature=0.0,
        )
        written = await self._write(request)
        if not written:
            raise ModelBroke("The model wrote no summary.")
        return written

    async def _write(self, request: ModelRequest) -> str:
        """A model's whole answer to a request of our own."""
        parts: list[str] = []
        clean = AnswerFilter(persona="")
        async with aclosing(self._backend.stream(request)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Text):
                    parts += clean.feed(piece.text)
        return ("".join(parts) + clean.close()).strip()

    # --- small decisions

    def _adapter(self, place: Place) -> ChatAdapter:
        try:
            return self._adapters[place.platform]
        except KeyError:
            raise DeliveryFailed(
                f"{place.platform} is not connected now; the answer is kept for its next start."
            ) from None

    def _system(self, limits: ModelLimits, *, shared: bool) -> str:
        return system_text(self._manner.persona, limits.profile, shared=shared, knowledge=self._knowledge is not None)

    def _shared(self, conversation: Conversation, incoming: Incoming) -> bool:
        speakers = {m.author_id for m in conversation.messages if m.role == "user"} | {incoming.author.id}
        return len(speakers) > 1

    def _context_notes(self, prompt: Prompt, found: Retrieval, answer: Answer) -> list[str]:
        if not self._manner.footer:
            return []
        parts = [f"{prompt.shown} of {prompt.total} messages"]
        if prompt.summaries:
            parts.append(f"{prompt.summaries} {'summary' if prompt.summaries == 1 else 'summaries'}")
        if prompt.passages:
            count = len({passage.source_id for passage in prompt.passages})
            parts.append(f"{len(prompt.passages)} passages of {count} {'source' if count == 1 else 'sources'}")
        elif found.sources_searched:
            parts.append(_nothing_found(found))
        if answer.usage is not None:
            parts.append(f"{_thousands(answer.usage.prompt_tokens)} tokens read")
        return [", ".join(parts)]

    def _problem(self, incoming: Incoming, error: ChinwagError) -> Problem:
        reference = log.reference(incoming.event_id)
        logger.warning("no answer", reference=reference, exc_info=error)
        return Problem(message=str(error), reference=reference)


def _nothing_found(found: Retrieval) -> str:
    count = found.sources_searched
    return f"nothing found in {count} {'source' if count == 1 else 'sources'}: not from the knowledge"


def _waiting(piece: Waiting) -> str:
    return piece.note if piece.done is None else f"{piece.note}, {piece.done:.0%}"


def _thousands(tokens: int) -> str:
    return str(tokens) if tokens < 1000 else f"{tokens / 1000:.1f}k"


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
