"""The commands that every frontend offers, declared once. Each gives text back; the frontend shows it."""

import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bot import log
from bot.errors import ChinwagError, CommandError
from bot.messages import (
    Answer,
    Audience,
    CommandSpec,
    Health,
    Incoming,
    Invocation,
    NewSource,
    Outcome,
    Problem,
    Progress,
    Scope,
    Source,
)
from bot.ports import ChatAdapter, KnowledgeBase, ModelBackend, Reply, Store

COMMANDS = (
    CommandSpec(name="help", usage="", summary="what you can do here"),
    CommandSpec(name="stack", usage="", summary="the five parts that answer you, and what each is made of"),
    CommandSpec(name="learn", usage="PATH or URL [private|channel|workspace]", summary="teach it a document"),
    CommandSpec(name="knowledge", usage="[list | show ID | remove ID]", summary="what it has learned"),
    CommandSpec(name="memory", usage="[show | pin FACT]", summary="what it remembers of this conversation"),
    CommandSpec(name="forget", usage="[me | all]", summary="erase what you said here, or the whole conversation"),
    CommandSpec(name="why", usage="[REFERENCE]", summary="how the last answer came about"),
)

logger = log.get("commands")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the commands work on."""

    store: Store
    knowledge: KnowledgeBase | None
    backend: ModelBackend
    adapters: Mapping[str, ChatAdapter]
    stack: Callable[[], Awaitable[str]]


class Commands:
    """Carries out one `Invocation` at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._handlers: dict[str, Callable[[Invocation, Reply], Awaitable[str]]] = {
            "help": self._help,
            "stack": self._stack,
            "learn": self._learn,
            "knowledge": self._knowledge,
            "memory": self._memory,
            "forget": self._forget,
            "why": self._why,
        }

    async def run(self, invocation: Invocation, reply: Reply) -> None:
        """End `reply` with the result, or with one line that says what was wrong."""
        reference = log.reference(invocation.event_id)
        try:
            handler = self._handlers.get(invocation.name)
            if handler is None:
                raise CommandError(f"/{invocation.name} is not a command. /help shows them all.")
            text = await handler(invocation, reply)
        except ChinwagError as error:
            logger.warning("command failed", command=invocation.name, reference=reference, exc_info=error)
            await reply.fail(
                Problem(message=str(error), reference="" if isinstance(error, CommandError) else reference)
            )
        except Exception:  # the per-message guard: a bug in a command must not end the frontend
            logger.exception("command failed", command=invocation.name, reference=reference)
            await reply.fail(
                Problem(message="Something went wrong inside Chinwag; nothing was lost.", reference=reference)
            )
        else:
            await reply.finish(Answer(text=text))

    # --- the commands

    async def _help(self, _invocation: Invocation, _reply: Reply) -> str:
        width = max(len(f"/{spec.name} {spec.usage}") for spec in COMMANDS)
        return "\n".join(f"{f'/{spec.name} {spec.usage}'.ljust(width)}  {spec.summary}" for spec in COMMANDS)

    async def _stack(self, _invocation: Invocation, _reply: Reply) -> str:
        return await self._parts.stack()

    async def _learn(self, invocation: Invocation, reply: Reply) -> str:
        adapter = self._parts.adapters[invocation.place.platform]
        words = _words(invocation.arguments)
        kind: Literal["private", "channel", "workspace"] = adapter.limits.default_scope
        if words and words[-1] in {"private", "channel", "workspace"}:
            kind = _scope_kind(words.pop())
        items = [NewSource(uri=word) for word in words]
        for attachment in invocation.attachments:
            content = await adapter.fetch(attachment)
            items.append(NewSource(uri=attachment.filename, content=content, media_type=attachment.media_type))
        if not items:
            raise CommandError("Say what to learn: /learn PATH or URL. For example: /learn handbook.pdf")
        for item in items:
            if item.content is None and "://" not in item.uri and not adapter.limits.local_files:
                raise CommandError("Attach the file, or give an address that begins with https://.")
        scope = scope_of(kind, invocation)
        knowledge = self._need_knowledge()
        return "\n".join([await learn(knowledge, item, scope, invocation.author.id, reply) for item in items])

    async def _knowledge(self, invocation: Invocation, _reply: Reply) -> str:
        knowledge = self._need_knowledge()
        audience = await self._audience(invocation)
        match _words(invocation.arguments):
            case [] | ["list"]:
                return source_list(await knowledge.sources(audience))
            case ["show", reference]:
                source = await knowledge.find(reference, audience)
                passages = await knowledge.show(source)
                head = f"{source.title} ({source.uri}), {source.chunks} passages, readable by this {source.scope.kind}"
                return "\n\n".join([head, *(f"[page {p.page}] {p.text}" if p.page else p.text for p in passages)])
            case ["remove", reference]:
                removed = await knowledge.remove(await knowledge.find(reference, audience))
                return removal(removed.source, removed.chunks_before, removed.chunks_after)
            case _:
                raise CommandError("Say /knowledge list, /knowledge show ID or /knowledge remove ID.")

    async def _memory(self, invocation: Invocation, _reply: Reply) -> str:
        words = invocation.arguments.split(maxsplit=1)
        if words[:1] == ["pin"] and len(words) == 2:
            await self._parts.store.pin(invocation.place, invocation.author, words[1].strip())
            return "Pinned. It will not be summarised away; /forget erases it."
        if words and words != ["show"]:
            raise CommandError("Say /memory show, or /memory pin FACT.")
        conversation = await self._parts.store.conversation(invocation.place)
        lines = [f"pinned: {pin.text}" for pin in conversation.pins]
        lines += [f"summary of {block.messages} messages:\n{block.text}" for block in conversation.summaries]
        lines += [f"{m.label if m.role == 'user' else 'Chinwag'}: {m.text}" for m in conversation.messages]
        return "\n".join(lines) or "Nothing is remembered here."

    async def _forget(self, invocation: Invocation, _reply: Reply) -> str:
        what = invocation.arguments.strip() or "me"
        if what not in {"me", "all"}:
            raise CommandError("Say /forget me, or /forget all.")
        author = invocation.author if what == "me" else None
        gone = await self._parts.store.forget(invocation.place, author)
        return (
            f"Erased: {gone.messages} messages, {gone.summaries} summaries, {gone.pins} pinned facts, "
            f"{gone.outcomes} answers' records."
        )

    async def _why(self, invocation: Invocation, _reply: Reply) -> str:
        reference = invocation.arguments.strip()
        store = self._parts.store
        outcome = await (store.outcome(reference) if reference else store.last_outcome(invocation.place))
        if outcome is None:
            raise CommandError(f"No answer has the reference {reference}." if reference else "There is no answer yet.")
        return why(outcome)

    # --- shared

    def _need_knowledge(self) -> KnowledgeBase:
        if self._parts.knowledge is None:
            raise CommandError("The knowledge is switched off. Set store under [knowledge] in chinwag.toml.")
        return self._parts.knowledge

    async def _audience(self, invocation: Invocation) -> Audience:
        from datetime import UTC, datetime

        adapter = self._parts.adapters[invocation.place.platform]
        asked = Incoming(
            event_id=invocation.event_id,
            place=invocation.place,
            author=invocation.author,
            text="",
            sent_at=datetime.now(UTC),
            private=invocation.private,
        )
        return await adapter.audience(asked)


async def learn(knowledge: KnowledgeBase, item: NewSource, scope: Scope, added_by: str, reply: Reply) -> str:
    """Learn one source, showing how far it is; the line that says what came of it."""
    import asyncio

    latest: list[str] = []

    def note(progress: Progress) -> None:
        latest.append(progress_text(progress))

    async def show() -> None:
        while True:
            if latest:
                await reply.status(latest.pop())
                latest.clear()
            await asyncio.sleep(0.1)

    shower = asyncio.create_task(show())
    try:
        learned = await knowledge.add(item, scope, added_by=added_by, progress=note)
    finally:
        shower.cancel()
        await asyncio.gather(shower, return_exceptions=True)
    source = learned.source
    pages = f", {source.pages} pages" if source.pages else ""
    if not learned.new:
        return f"{source.title} was known already ({source.id}); nothing was added."
    verb = "Learned again, the old text is replaced:" if learned.replaced else "Learned"
    return (
        f"{verb} {source.title} ({source.id}): {source.chunks} passages{pages}, readable by this {source.scope.kind}."
    )


def progress_text(progress: Progress) -> str:
    """One line for a step of long work."""
    return f"{progress.stage} {progress.done} of {progress.total}" if progress.total else progress.stage


def scope_of(kind: Literal["private", "channel", "workspace"], invocation: Invocation) -> Scope:
    """The scope of that kind as seen from where the command was given."""
    match kind:
        case "private":
            return Scope.private(invocation.place, invocation.author)
        case "channel":
            return Scope.channel(invocation.place)
        case "workspace":
            return Scope.workspace(invocation.place)


def source_list(sources: Sequence[Source]) -> str:
    """The sources as a table."""
    if not sources:
        return "Nothing is learned yet. Teach it with /learn PATH or URL."
    return "\n".join(
        f"{s.id}  {s.learned_at:%Y-%m-%d}  {s.chunks:5d} passages  {s.scope.kind:9}  {s.title}  {s.uri}"
        for s in sources
    )


def removal(source: Source, before: int, after: int) -> str:
    """The proof of a removal."""
    return f"Removed {source.title} ({source.id}). Passages in the index: {before} before, {after} after."


def why(outcome: Outcome) -> str:
    """How an answer came about, for a person."""
    if outcome.problem is not None:
        return f"There was no answer ({outcome.problem.reference}): {outcome.problem.message}"
    answer = outcome.answer
    if answer is None:
        return "Nothing is known about it."
    lines = [f"reference  {answer.reference}", f"model      {answer.model or 'unknown'}, ended: {answer.ending}"]
    if answer.usage:
        cached = f" ({answer.usage.cached_tokens} from the cache)" if answer.usage.cached_tokens else ""
        lines.append(f"tokens     {answer.usage.prompt_tokens} read{cached}, {answer.usage.completion_tokens} written")
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in answer.timings_ms.items())
    lines += [f"times      {times}"] if times else []
    lines += [f"note       {note}" for note in answer.notes]
    for given in answer.passages:
        page = f", page {given.passage.page}" if given.passage.page else ""
        mark = "cited" if given.cited else "given, not cited"
        lines.append(f"[{given.n}] {mark}, score {given.passage.score:.3f}: {given.passage.title}{page}")
    return "\n".join(lines)


def health_lines(checks: Sequence[Health]) -> str:
    """The checks of `doctor`, one a line, each ok or with its fix."""
    return "\n".join(
        f"{'ok  ' if c.ok else 'FIX '} {c.name:12} {c.detail}{'' if c.ok else f' -> {c.fix}'}" for c in checks
    )


def _words(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise CommandError(f"The quotes in {arguments!r} do not match ({error}).") from None


def _scope_kind(word: str) -> Literal["private", "channel", "workspace"]:
    return "private" if word == "private" else "channel" if word == "channel" else "workspace"
