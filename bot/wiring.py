"""The one place that names concrete parts and puts them together."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from bot import log
from bot.commands import COMMANDS, Commands, Parts
from bot.config import OPENAI_MODEL, OPENAI_URL, Settings
from bot.conversation import Conversations, Manner
from bot.errors import MissingExtra, ModelError, SettingsError
from bot.messages import CommandSpec, Health, Incoming, Invocation
from bot.ports import BackendOptions, ChatAdapter, KnowledgeBase, KnowledgeOptions, ModelBackend, Reply
from bot.prompt import Persona
from bot.store import SqlStore, sqlite_url

logger = log.get("wiring")


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """The opened parts that need no frontend."""

    settings: Settings
    store: SqlStore
    backend: ModelBackend
    knowledge: KnowledgeBase | None


class Chinwag:
    """The running whole, as adapters see it (`bot.ports.Inbox`)."""

    def __init__(self, core: Core, adapters: Mapping[str, ChatAdapter]) -> None:
        from bot.engine import Engine

        self.core = core
        self.conversations = Conversations(
            store=core.store,
            backend=core.backend,
            knowledge=core.knowledge,
            adapters=adapters,
            manner=manner(core.settings),
        )
        self._commands = Commands(
            Parts(
                store=core.store,
                knowledge=core.knowledge,
                backend=core.backend,
                adapters=adapters,
                stack=lambda: stack(core, list(adapters)),
            )
        )
        self._engine: Engine | None = None

    @property
    def commands(self) -> tuple[CommandSpec, ...]:
        """The commands that every frontend offers."""
        return COMMANDS

    @contextlib.asynccontextmanager
    async def running(self, *, executor_id: str, recover: bool) -> AsyncIterator[int]:
        """Open the engine and take up what was left; gives how many turns came back."""
        from bot.engine import Engine

        conversations = self.conversations
        async with (
            contextlib.aclosing(conversations),
            Engine.open(
                data_dir=self.core.settings.data_dir,
                executor_id=executor_id,
                think=conversations.think,
                deliver=conversations.deliver,
                stopped=conversations.stopped,
                retention_days=self.core.settings.memory.turn_retention_days,
                recover=recover,
            ) as self._engine,
        ):
            yield await self._engine.boot()

    async def accept(self, incoming: Incoming) -> None:
        """See `Inbox.accept`."""
        await self.engine.accept(incoming)

    async def command(self, invocation: Invocation, reply: Reply) -> None:
        """See `Inbox.command`."""
        await self._commands.run(invocation, reply)

    async def stop(self, event_id: str) -> bool:
        """See `Inbox.stop`."""
        await self.core.store.request_stop(event_id)  # first: a crash between the two must not forget the stop
        stopped: bool = await self.engine.cancel(event_id)
        return stopped

    async def settled(self) -> None:
        """See `Inbox.settled`."""
        await self.engine.drained()

    @property
    def engine(self):  # type: ignore[no-untyped-def]  # Engine, which is imported late
        """The engine, while `running`."""
        if self._engine is None:
            raise RuntimeError("Chinwag is not running")
        return self._engine


@contextlib.asynccontextmanager
async def open_core(settings: Settings, *, backend: str = "") -> AsyncIterator[Core]:
    """Open database, model and knowledge; nothing heavy starts before it is needed."""
    async with contextlib.AsyncExitStack() as opened:
        url = settings.database_url or sqlite_url(settings.data_dir / "chinwag.db")
        store = await opened.enter_async_context(SqlStore.open(url))
        model = await opened.enter_async_context(open_backend(settings, backend or settings.backend_name))
        knowledge = await opened.enter_async_context(open_knowledge(settings, store))
        yield Core(settings=settings, store=store, backend=model, knowledge=knowledge)


def open_backend(settings: Settings, name: str) -> contextlib.AbstractAsyncContextManager[ModelBackend]:
    """The backend of that name: one of the kinds, or one of chinwag.toml. Raises `SettingsError`."""
    from backends import BACKENDS

    options = backend_options(settings, name)
    kind = settings.backends[name].kind if name in settings.backends else name
    if kind not in BACKENDS:
        known = ", ".join([*BACKENDS, *settings.backends])
        raise SettingsError(f"CHINWAG_BACKEND={name} is not known. Choose one of: {known}.")
    return BACKENDS[kind](options)


def backend_options(settings: Settings, name: str) -> BackendOptions:
    """What a backend is opened with."""
    cache = {"cache_dir": settings.cache_dir} if settings.cache_dir else {}
    if name in settings.backends:
        table = settings.backends[name]
        key = os.environ.get(table.api_key_env, "") if table.api_key_env else ""
        if table.api_key_env and not key:
            raise SettingsError(f"backends.{name} wants its key in {table.api_key_env}, which is not set.")
        return BackendOptions(
            name=name,
            data_dir=settings.data_dir,
            base_url=table.base_url,
            api_key=key,
            model=table.model,
            context_tokens=table.context_tokens,
            timeout_s=table.timeout_s,
            extra={**cache, **table.extra},
        )
    to_openai = name == "openai" and not settings.base_url
    return BackendOptions(
        name=name,
        data_dir=settings.data_dir,
        base_url=settings.base_url or (OPENAI_URL if to_openai else ""),
        api_key=settings.api_key.get_secret_value(),
        model=settings.model or (OPENAI_MODEL if to_openai else ""),
        extra=cache,
    )


@contextlib.asynccontextmanager
async def open_knowledge(settings: Settings, store: SqlStore) -> AsyncIterator[KnowledgeBase | None]:
    """The knowledge, or None when it is off or its packages are not installed."""
    from knowledge import KNOWLEDGE

    if settings.knowledge.store == "off":
        yield None
        return
    async with contextlib.AsyncExitStack() as opened:
        opening = KNOWLEDGE[settings.knowledge.store](knowledge_options(settings), store)
        try:
            knowledge: KnowledgeBase | None = await opened.enter_async_context(opening)
        except MissingExtra as error:
            logger.warning("no knowledge", error=str(error))
            knowledge = None
        yield knowledge


def knowledge_options(settings: Settings) -> KnowledgeOptions:
    """What the knowledge is opened with."""
    return KnowledgeOptions(
        data_dir=settings.data_dir,
        qdrant_url=settings.qdrant_url,
        qdrant_api_key=settings.qdrant_api_key.get_secret_value(),
        max_file_bytes=settings.knowledge.max_file_mb * 1_000_000,
        fetch_timeout_s=settings.knowledge.fetch_timeout_s,
        allow_private_addresses=settings.knowledge.allow_private_addresses,
    )


def manner(settings: Settings) -> Manner:
    """How answers are made."""
    return Manner(
        persona=Persona(name=settings.persona.name, prompt=settings.persona.prompt),
        max_tokens=settings.answers.max_tokens,
        temperature=settings.answers.temperature,
        seed=settings.answers.seed,
        footer=settings.answers.footer,
        outside=settings.answers.outside_knowledge,
        passages=settings.knowledge.passages,
        rate_per_minute=settings.rate_per_minute,
    )


async def stack(core: Core, frontends: Sequence[str]) -> str:
    """The five parts as they are here, one a line. Shows no secret."""
    settings = core.settings
    health = await core.backend.health()
    try:
        limits = await core.backend.limits()
        window = f"window {limits.context_tokens:,} tokens, profile {limits.profile.name}"
        where = "on this machine" if limits.local else "by network"
        model = f"{limits.model}, {window}, {where}"
    except ModelError as error:
        model = f"not available: {error}"
    name = settings.backend_name
    index = "off" if core.knowledge is None else settings.qdrant_url or "Qdrant embedded, multilingual-e5-small + BM25"
    lines = [
        ("frontend", ", ".join(frontends)),
        ("input", f"persona {settings.persona.name}, memory, up to {settings.knowledge.passages} passages, question"),
        ("model", f"{name}: {model}" if health.ok else f"{name}: {model} ({health.detail})"),
        ("memory", settings.database_url.partition("@")[2] or str(settings.data_dir / "chinwag.db")),
        ("output", "cleaned, cited, at the pace of the platform"),
        ("knowledge", index),
    ]
    return "\n".join(f"{part:10} {what}" for part, what in lines)


async def checks(settings: Settings) -> list[Health]:
    """Every line of `chinwag doctor`: data folder, database, engine, Qdrant, encoder, model."""
    from bot import folder
    from bot.errors import ChinwagError

    found: list[Health] = []
    try:
        folder.prepare(settings.data_dir)
        found.append(Health(name="data folder", ok=True, detail=str(settings.data_dir)))
    except ChinwagError as error:
        return [Health(name="data folder", ok=False, detail=str(settings.data_dir), fix=str(error))]
    url = settings.database_url or sqlite_url(settings.data_dir / "chinwag.db")
    async with contextlib.AsyncExitStack() as opened:
        try:
            store = await opened.enter_async_context(SqlStore.open(url))
            found.append(Health(name="database", ok=True, detail=url.partition("///")[2]))
        except ChinwagError as error:
            return [*found, Health(name="database", ok=False, detail=url.partition("///")[2], fix=str(error))]
        try:
            knowledge = await opened.enter_async_context(open_knowledge(settings, store))
            found += (
                list(await knowledge.health())
                if knowledge
                else [Health(name="knowledge", ok=settings.knowledge.store == "off", detail="off", fix="make setup")]
            )
        except ChinwagError as error:
            found.append(Health(name="knowledge", ok=False, detail="cannot be opened", fix=str(error)))
        try:
            backend = await opened.enter_async_context(open_backend(settings, settings.backend_name))
            found.append(await backend.health())
        except ChinwagError as error:
            found.append(Health(name="model", ok=False, detail=settings.backend_name, fix=str(error)))
    return found
