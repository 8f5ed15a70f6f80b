"""Conversations, sources and outcomes in a database: SQLAlchemy Core; SQLite (WAL) unless told otherwise.

Each call is one transaction on the store's own thread, one hop from the loop and back. SQLAlchemy's async layer makes
four hops a statement: measured here, beginning a turn and reading its conversation took 9.7 ms that way.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DatabaseError

from bot.errors import DataFolderError, StorageFull, StoreDamaged
from bot.messages import Incoming, Outcome, Person, Place, Scope, Source
from bot.ports import Conversation, Forgotten, Pin, StoredMessage, Summary

T = TypeVar("T")
OUTCOME = TypeAdapter(Outcome)
HEAD = "0001"
"""The newest migration in bot/migrations/versions; a test holds the two together."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware moment, kept as UTC; SQLite itself knows no time zones."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        del dialect
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        del dialect
        return value.replace(tzinfo=UTC) if value else None


metadata = sa.MetaData()

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("author_id", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sent_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("event_id", "role", name="uq_messages_event"),
    sa.Index("ix_messages_place", "place", "id"),
    sa.Index("ix_messages_author", "place", "author_id"),
    sqlite_autoincrement=True,
)
summaries = sa.Table(
    "summaries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("place", sa.Text, nullable=False, index=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("upto_id", sa.Integer, nullable=False),
    sa.Column("messages", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)
pins = sa.Table(
    "pins",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("place", sa.Text, nullable=False, index=True),
    sa.Column("author_id", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("place", sa.Text, nullable=False, index=True),
    sa.Column("reference", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("ended_at", UtcDateTime, nullable=False),
)
stops = sa.Table(
    "stops",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("asked_at", UtcDateTime, nullable=False),
)
sources = sa.Table(
    "sources",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("scope", sa.Text, nullable=False, index=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("chunks", sa.Integer, nullable=False),
    sa.Column("pages", sa.Integer),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("learned_at", UtcDateTime, nullable=False),
    sa.Column("added_by", sa.Text, nullable=False),
)


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{path}"


class SqlStore:
    """The `Store` on a database. Open it with `SqlStore.open`."""

    def __init__(self, engine: sa.Engine, thread: ThreadPoolExecutor, shown: str) -> None:
        self._engine = engine
        self._thread = thread
        self._shown = shown

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["SqlStore"]:
        """Connect and bring the tables up to date. Raises `StoreDamaged`, `StorageFull`, `DataFolderError`."""
        shown = sa.make_url(url).render_as_string(hide_password=True)
        if not url.startswith("sqlite"):
            raise DataFolderError(f"{shown}: only SQLite is supported so far. Leave CHINWAG_DATABASE_URL empty.")
        engine = sa.create_engine(url, connect_args={"check_same_thread": False})
        sa.event.listen(engine, "connect", _prepare_sqlite)
        with ThreadPoolExecutor(1, thread_name_prefix="store") as thread:
            store = cls(engine, thread, shown)
            try:
                await store._do(_upgrade)
                yield store
            finally:
                await asyncio.get_running_loop().run_in_executor(thread, engine.dispose)

    async def _do(self, work: Callable[[sa.Connection], T]) -> T:
        """Run one transaction on the store's thread."""

        def transaction() -> T:
            with _translated(self._shown), self._engine.begin() as db:
                return work(db)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    # --- turns

    async def begin_turn(self, incoming: Incoming) -> Outcome | None:
        def work(db: sa.Connection) -> Outcome | None:
            body = db.scalar(sa.select(outcomes.c.body).where(outcomes.c.event_id == incoming.event_id))
            if body is not None:
                return OUTCOME.validate_json(body)
            label = _label(db, incoming.place, incoming.author)
            _keep(db, incoming, role="user", author_id=incoming.author.id, label=label, text=incoming.text)
            return None

        return await self._do(work)

    async def end_turn(self, incoming: Incoming, outcome: Outcome) -> None:
        ended = outcome.answer or outcome.problem
        if ended is None:
            raise ValueError("an outcome holds an answer or a problem")

        def work(db: sa.Connection) -> None:
            if not db.scalar(sa.select(messages.c.id).where(messages.c.event_id == incoming.event_id)):
                return  # erased while it was being answered: the answer is part of what was erased
            row = {
                "event_id": incoming.event_id,
                "place": incoming.place.key,
                "reference": ended.reference,
                "body": OUTCOME.dump_json(outcome).decode(),
                "ended_at": datetime.now(UTC),
            }
            kept = db.execute(insert(outcomes).values(row).on_conflict_do_nothing())
            if outcome.answer is not None and outcome.answer.text and kept.rowcount:
                _keep(db, incoming, role="assistant", author_id="", label="", text=outcome.answer.text)

        await self._do(work)

    async def last_outcome(self, place: Place) -> Outcome | None:
        query = sa.select(outcomes.c.body).where(outcomes.c.place == place.key).order_by(outcomes.c.id.desc()).limit(1)
        return await self._outcome(query)

    async def outcome(self, reference: str) -> Outcome | None:
        return await self._outcome(sa.select(outcomes.c.body).where(outcomes.c.reference == reference).limit(1))

    async def _outcome(self, query: sa.Select[str]) -> Outcome | None:
        body = await self._do(lambda db: db.scalar(query))
        return OUTCOME.validate_json(body) if body else None

    async def request_stop(self, event_id: str) -> None:
        row = {"event_id": event_id, "asked_at": datetime.now(UTC)}
        await self._do(lambda db: db.execute(insert(stops).values(row).on_conflict_do_nothing()))

    async def stop_requested(self, event_id: str) -> bool:
        query = sa.select(stops.c.event_id).where(stops.c.event_id == event_id)
        return await self._do(lambda db: db.scalar(query)) is not None

    # --- memory

    async def conversation(self, place: Place) -> Conversation:
        def work(db: sa.Connection) -> Conversation:
            blocks = tuple(_summary(row) for row in _rows(db, summaries, place.key))
            upto = max((block.upto_id for block in blocks), default=0)
            recent = _rows(db, messages, place.key, messages.c.id > upto)
            return Conversation(
                pins=tuple(
                    Pin(id=row["id"], text=row["text"], author_id=row["author_id"])
                    for row in _rows(db, pins, place.key)
                ),
                summaries=blocks,
                messages=tuple(_message(row) for row in recent),
            )

        return await self._do(work)

    async def compact(self, place: Place, *, replaces: Sequence[int], text: str, upto_id: int, messages: int) -> None:
        def work(db: sa.Connection) -> None:
            db.execute(sa.delete(summaries).where(summaries.c.place == place.key, summaries.c.id.in_(replaces)))
            row = {"place": place.key, "text": text, "upto_id": upto_id, "messages": messages}
            db.execute(sa.insert(summaries).values(row))

        await self._do(work)

    async def pin(self, place: Place, author: Person, text: str) -> None:
        row = {"place": place.key, "author_id": author.id, "text": text}
        await self._do(lambda db: db.execute(sa.insert(pins).values(row)))

    async def forget(self, place: Place, author: Person | None = None) -> Forgotten:
        here = messages.c.place == place.key

        def work(db: sa.Connection) -> Forgotten:
            if author is None:
                return Forgotten(
                    messages=_delete(db, messages, here),
                    summaries=_delete(db, summaries, summaries.c.place == place.key),
                    pins=_delete(db, pins, pins.c.place == place.key),
                    outcomes=_delete(db, outcomes, outcomes.c.place == place.key),
                )
            events = sa.select(messages.c.event_id).where(here, messages.c.author_id == author.id).scalar_subquery()
            first = db.scalar(sa.select(sa.func.min(messages.c.id)).where(here, messages.c.author_id == author.id))
            own_pins = sa.and_(pins.c.place == place.key, pins.c.author_id == author.id)
            touched = sa.and_(summaries.c.place == place.key, summaries.c.upto_id >= (first or sys_max()))
            return Forgotten(
                outcomes=_delete(db, outcomes, outcomes.c.event_id.in_(events)),
                summaries=_delete(db, summaries, touched),
                pins=_delete(db, pins, own_pins),
                messages=_delete(db, messages, sa.and_(here, messages.c.event_id.in_(events))),
            )

        return await self._do(work)

    # --- sources

    async def put_source(self, source: Source) -> None:
        row = {
            "id": source.id,
            "uri": source.uri,
            "title": source.title,
            "scope": str(source.scope),
            "digest": source.digest,
            "chunks": source.chunks,
            "pages": source.pages,
            "size_bytes": source.size_bytes,
            "learned_at": source.learned_at,
            "added_by": source.added_by,
        }
        upsert = insert(sources).values(row).on_conflict_do_update(index_elements=["id"], set_=row)
        await self._do(lambda db: db.execute(upsert))

    async def sources(self, scopes: frozenset[str]) -> tuple[Source, ...]:
        query = (
            sa.select(sources)
            .where(sources.c.scope.in_(sorted(scopes)))
            .order_by(sources.c.learned_at.desc(), sources.c.id)
        )
        return await self._do(lambda db: tuple(_source(row) for row in db.execute(query).mappings()))

    async def count_sources(self, scopes: frozenset[str]) -> int:
        query = sa.select(sa.func.count()).select_from(sources).where(sources.c.scope.in_(sorted(scopes)))
        return await self._do(lambda db: db.scalar(query)) or 0

    async def delete_source(self, source_id: str) -> None:
        await self._do(lambda db: db.execute(sa.delete(sources).where(sources.c.id == source_id)))


def sys_max() -> int:
    """An id beyond every row."""
    return 2**62


def _keep(db: sa.Connection, incoming: Incoming, *, role: str, author_id: str, label: str, text: str) -> None:
    row = {
        "place": incoming.place.key,
        "event_id": incoming.event_id,
        "role": role,
        "author_id": author_id,
        "label": label,
        "text": text,
        "sent_at": incoming.sent_at if role == "user" else datetime.now(UTC),
    }
    db.execute(insert(messages).values(row).on_conflict_do_nothing())


def _rows(db: sa.Connection, table: sa.Table, place: str, *more: sa.ColumnElement[bool]) -> Sequence[RowMapping]:
    return db.execute(sa.select(table).where(table.c.place == place, *more).order_by(table.c.id)).mappings().all()


def _delete(db: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> int:
    return db.execute(sa.delete(table).where(where)).rowcount


def _label(db: sa.Connection, place: Place, author: Person) -> str:
    """The name a person goes by in a place: theirs when they first spoke there, told apart from namesakes."""
    here = messages.c.place == place.key
    mine = (
        sa.select(messages.c.label).where(here, messages.c.author_id == author.id, messages.c.role == "user").limit(1)
    )
    known = db.scalar(mine)
    if known:
        return str(known)
    name = " ".join(author.name.replace(":", " ").split()) or "Somebody"
    others = sa.select(messages.c.label).where(here, messages.c.label.startswith(name, autoescape=True)).distinct()
    taken = set(db.scalars(others))
    label, number = name, 2
    while label in taken:
        label, number = f"{name} ({number})", number + 1
    return label


def _summary(row: RowMapping) -> Summary:
    return Summary(id=row["id"], text=row["text"], upto_id=row["upto_id"], messages=row["messages"])


def _message(row: RowMapping) -> StoredMessage:
    return StoredMessage(
        id=row["id"],
        event_id=row["event_id"],
        role=row["role"],
        author_id=row["author_id"],
        label=row["label"],
        text=row["text"],
        sent_at=row["sent_at"],
    )


def _source(row: RowMapping) -> Source:
    kind, _, key = row["scope"].partition(":")
    return Source(
        id=row["id"],
        uri=row["uri"],
        title=row["title"],
        scope=Scope(kind=kind, key=key),
        digest=row["digest"],
        chunks=row["chunks"],
        pages=row["pages"],
        size_bytes=row["size_bytes"],
        learned_at=row["learned_at"],
        added_by=row["added_by"],
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _upgrade(db: sa.Connection) -> None:
    """Run the migrations that are missing; alembic is imported only when there are any."""
    kept = sa.inspect(db).has_table("alembic_version")
    if not kept or db.scalar(sa.text("SELECT version_num FROM alembic_version")) != HEAD:
        _migrate(db)


def _migrate(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextlib.contextmanager
def _translated(shown: str) -> Iterator[None]:
    """Turn the database's faults into ours."""
    try:
        yield
    except DatabaseError as error:
        raise translate(error.orig, shown) or error from error
    except sqlite3.DatabaseError as error:
        raise translate(error, shown) or error from error


def translate(error: BaseException | None, shown: str) -> DataFolderError | None:
    """Our error for one of SQLite's, or None when it is neither damage, nor space, nor access."""
    text = str(error)
    if "disk is full" in text or "disk I/O error" in text:
        return StorageFull(f"No space is left for {shown}. Free some, then send it again; what was kept is safe.")
    if "not a database" in text or "malformed" in text:
        return StoreDamaged(
            f"{shown} is damaged. Move that file away and start again, or put a backup there; nothing was changed."
        )
    if "unable to open" in text or "readonly" in text or "locked" in text:
        return DataFolderError(
            f"{shown} cannot be used ({text}). Check who owns it, and that nothing else is using it."
        )
    return None
