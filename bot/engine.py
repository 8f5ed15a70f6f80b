"""Durable turns: what was accepted ends in exactly one outcome, through crashes and redeliveries.

The only module that knows DBOS. A turn is one workflow of two checkpointed steps: *think*, so that an answer is
never paid for twice, and *deliver*. Turns of one conversation run one at a time in the order in which they were
accepted, conversations side by side. State is one SQLite file, `engine.db` in the data folder, of one process.

What happens to a turn, by where its process was killed:

    before accept returned       the platform sends it again
    waiting, or thinking         think again, told that this is a replay
    after think was recorded     deliver the recorded outcome, told that this is a replay
    after deliver was recorded   nothing
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy
from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID
from pydantic import TypeAdapter
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bot import log
from bot.errors import ChinwagError, DataFolderBusy, DataFolderError, StorageFull, StoreDamaged
from bot.lanes import Lanes, Ticket
from bot.messages import Answer, Incoming, Outcome, Problem
from bot.ports import Deliver, Stopped, Think

FILE = "engine.db"
TURN = "turn"
VERSION = "1"
"""Recorded with every turn; a turn of another version would never be taken up again. It stays "1"."""

ACCEPT_TIMEOUT_S = 30.0
RECOVERY_WAIT_S = 10.0
DELIVERY_ATTEMPTS = 6
DELIVERY_TIMEOUT_S = 120.0
LONGEST_PAUSE_S = 60.0
GOODBYE_S = 3.0
"""How long a delivery that has begun may go on while the engine closes."""
CLOSING_TIMEOUT_S = 10.0
GIVE_UP_AFTER = 10
"""A turn that was being thought about when this many processes ended is suspected of ending them."""
LEAST_RETENTION_DAYS = 7.0
"""A message that is sent again is recognised for as long as its turn is kept."""
SWEEP_BATCH = 500
QUICK_CHECK_MAX_BYTES = 50_000_000

CONNECTIONS = 4
THREADS = 16
"""DBOS makes its pool the loop's own, so `asyncio.to_thread` of the whole program runs there too."""

INCOMING = TypeAdapter(Incoming)
OUTCOME = TypeAdapter(Outcome)

logger = log.get("engine")


class StepFailed(Exception):
    """An earlier process recorded an error instead of a step's result."""


@dataclass(eq=False, slots=True)
class Turn:
    """A turn that has not ended, as this process knows it."""

    incoming: Incoming
    ticket: Ticket
    replay: bool
    running: "asyncio.Future[Any] | None" = None
    thinking: "asyncio.Task[Outcome] | None" = None
    delivering: "asyncio.Task[None] | None" = None
    outcome: Outcome | None = None
    stopped: bool = False

    @property
    def reference(self) -> str:
        return log.reference(self.incoming.event_id)


class Engine:
    """Accepts messages and sees each of them through. One per process at a time; made by `open`."""

    _in_use: ClassVar[bool] = False

    def __init__(
        self, path: Path, executor_id: str, think: Think, deliver: Deliver, stopped: Stopped, *, recover: bool
    ) -> None:
        self._path = path
        self._executor_id = executor_id
        self._application = "chinwag" if recover else "chinwag-once"
        self._recover = recover
        self._think = think
        self._deliver = deliver
        self._stopped = stopped
        self._retention = timedelta(days=LEAST_RETENTION_DAYS)
        self._retry_wait_s = 1.0
        self._lanes = Lanes(held=recover)
        self._turns: dict[str, Turn] = {}
        self._tries: dict[str, int] = {}
        self._expected: set[str] = set()
        self._joined = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_order = 0
        self._accepting: set[asyncio.Task[None]] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._closing = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        *,
        data_dir: Path,
        executor_id: str,
        think: Think,
        deliver: Deliver,
        stopped: Stopped | None = None,
        retention_days: float = 30,
        recover: bool = True,
        retry_wait_s: float = 1.0,
    ) -> AsyncIterator["Engine"]:
        """Open `engine.db` in `data_dir`. Call `boot` before turns can begin, unless `recover` is false.

        `executor_id` names this installation and stays the same for ever. With `recover=False`, for commands that
        run once beside another process's turns, it is made unique and no other turn is touched. `stopped` says
        what a stopped turn ends in. Ended turns are kept `retention_days`, at least 7. `retry_wait_s` is the first
        pause before a delivery is tried again; it doubles.

        Closing interrupts what runs and leaves it for the next start. Raises `StoreDamaged`, `StorageFull`,
        `DataFolderBusy`, `DataFolderError`.
        """
        if cls._in_use:
            raise RuntimeError("An engine is open in this process already; close it first.")
        path = data_dir / FILE
        name = executor_id if recover else f"{executor_id}-{uuid.uuid4().hex}"
        self = cls(path, name, think, deliver, stopped or _stopped_unsaid, recover=recover)
        self._retention = timedelta(days=max(retention_days, LEAST_RETENTION_DAYS))
        self._retry_wait_s = retry_wait_s
        cls._in_use = True
        try:
            await asyncio.to_thread(_prepare, path)
            database = _connect(path)
            try:
                self._launch(database)
                yield self
            finally:
                await self._close(database)
        finally:
            cls._in_use = False

    # --- what the core calls --------------------------------------------------------------------

    async def boot(self) -> int:
        """Take up what earlier processes left, then let turns begin; how many turns came back.

        New turns wait until all of these are in line, or none has come for 10 seconds. Old ones are removed in the
        background.
        """
        if not self._recover:
            return 0
        with _storage_errors(self._path):
            left = await DBOS.list_workflows_async(
                name=TURN,
                status=["PENDING", "ENQUEUED"],
                application_name=self._application,
                load_input=False,
                load_output=False,
            )
            strays = [w.workflow_id for w in left if w.status == "PENDING" and w.executor_id != self._executor_id]
            if strays:  # of the same folder under another executor id: a renamed machine
                await DBOS.resume_workflows_async(strays)
        self._tries = {_event_id(w.workflow_id): (w.attributes or {}).get("tries", 0) for w in left}
        self._expected = self._tries.keys() - self._turns.keys()
        await self._wait_for_expected()
        came_back = sum(turn.replay for turn in self._turns.values())
        self._lanes.release()
        self.schedule("retention", self.sweep, every=timedelta(days=1), at_once=True)
        return came_back

    async def accept(self, incoming: Incoming) -> None:
        """Return once the message is durable; an event id that is known already changes nothing.

        Raises `StorageFull`, `StoreDamaged`, `DataFolderBusy`, `DataFolderError`: then nothing was kept.
        """
        if self._closing:
            raise DataFolderError("Chinwag is shutting down. Send the message again in a moment.")
        self._last_order = max(self._last_order + 1, time.time_ns())
        # A task of its own, so that a caller who gives up leaves no turn that is stored but does not run; an empty
        # context, so that it is nobody's child workflow.
        task = asyncio.create_task(self._accept(incoming, self._last_order), context=Context())
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        task.add_done_callback(_retrieve)
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                await asyncio.shield(task)
        except TimeoutError:
            raise DataFolderBusy(_sentence(self._path, sqlite3.SQLITE_BUSY)) from None

    async def cancel(self, event_id: str) -> bool:
        """Stop a turn that waits or thinks; false when there is none. It still delivers an outcome, soon."""
        turn = self._turns.get(event_id)
        if turn is None or turn.outcome is not None:
            return False
        if not turn.stopped:
            turn.stopped = True
            if turn.thinking is not None:
                turn.thinking.cancel()
            else:
                turn.ticket.skip()
        return True

    async def drained(self) -> None:
        """Return when every accepted turn has ended."""
        await self._idle.wait()

    async def sweep(self) -> int:
        """Remove turns that ended longer ago than they are kept; how many."""
        before = (datetime.now(UTC) - self._retention).isoformat()
        removed = 0
        with _storage_errors(self._path):
            ended = {"status": ["SUCCESS", "ERROR", "CANCELLED"], "completed_before": before}
            abandoned = {"application_name": "chinwag-once", "end_time": before}
            for which in (ended, abandoned):
                removed += await self._remove(which)
        return removed

    def schedule(
        self,
        name: str,
        job: Callable[[], Awaitable[object]],
        *,
        every: timedelta | None = None,
        cron: str | None = None,
        at_once: bool = False,
    ) -> None:
        """Run `job` again and again until the engine closes: `every` so long, or by `cron` in local time.

        A run that fails is logged, and the next one comes; runs of one job never overlap, and those missed while
        the process was down are not made up for. Raises `ValueError` for a cron line that makes no sense.
        """
        task = asyncio.create_task(self._repeat(name, job, _pauses(every, cron), at_once=at_once), context=Context())
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    # --- the turn -------------------------------------------------------------------------------

    async def _accept(self, incoming: Incoming, order: int) -> None:
        lane = self._lanes.lane(incoming.place.key)
        event_id = incoming.event_id
        async with lane.joining:
            if event_id in self._turns:
                return
            with _storage_errors(self._path), SetWorkflowID(_workflow_id(event_id)):
                handle = await DBOS.start_workflow_async(self._workflow, order, _dump(INCOMING, incoming))
            running: asyncio.Future[Any] | None = getattr(handle, "task", None)
            if running is None:  # stored before; whoever stored it runs it
                return
            self._begin(Turn(incoming, lane.join((order, event_id)), replay=False), running)

    async def _run(self, order: int, message: dict[str, Any]) -> None:
        """The workflow. Its steps are recorded by number: changing them strands the turns of an older release."""
        turn = self._turn(order, message)
        async with self._in_turn(turn):
            outcome = await self._thought(turn)
            await DBOS.run_step_async({"name": "deliver"}, self._deliver_step, turn, outcome)

    def _turn(self, order: int, message: dict[str, Any]) -> Turn:
        """The turn as `accept` left it; in a later process, a new one that is a replay."""
        incoming = INCOMING.validate_python(message)
        known = self._turns.get(incoming.event_id)
        if known is not None:
            return known
        running = asyncio.current_task()
        assert running is not None
        self._last_order = max(self._last_order, order)
        ticket = self._lanes.lane(incoming.place.key).join((order, incoming.event_id))
        turn = Turn(incoming, ticket, replay=True)
        self._begin(turn, running)
        return turn

    def _begin(self, turn: Turn, running: "asyncio.Future[Any]") -> None:
        self._turns[turn.incoming.event_id] = turn
        self._idle.clear()
        running.add_done_callback(lambda _: self._end(turn))
        self._expected.discard(turn.incoming.event_id)
        self._joined.set()

    def _end(self, turn: Turn) -> None:
        turn.ticket.leave()
        self._turns.pop(turn.incoming.event_id, None)
        if not self._turns:
            self._idle.set()

    @contextlib.asynccontextmanager
    async def _in_turn(self, turn: Turn) -> AsyncIterator[None]:
        """One at a time and in order, within a conversation."""
        if self._closing:
            raise asyncio.CancelledError
        try:
            await turn.ticket.called
            yield
        finally:
            turn.ticket.leave()

    async def _thought(self, turn: Turn) -> Outcome:
        """The recorded outcome; when it cannot be written or read, the outcome all the same."""
        try:
            return OUTCOME.validate_python(await DBOS.run_step_async({"name": "think"}, self._think_step, turn))
        except (SQLAlchemyError, StepFailed, TypeError, ValueError):
            logger.exception("think was not recorded", reference=turn.reference)
            return turn.outcome or _bug(turn)

    async def _think_step(self, turn: Turn) -> Any:
        if self._closing:
            raise asyncio.CancelledError
        if turn.stopped:
            turn.outcome = await self._when_stopped(turn)
        elif turn.replay and await self._tried_enough(turn):
            logger.error("gave up on a turn that no process survived", reference=turn.reference)
            turn.outcome = _bug(turn)
        else:
            turn.outcome = await self._guarded(turn)
        return _dump(OUTCOME, turn.outcome)

    async def _tried_enough(self, turn: Turn) -> bool:
        """Count one more try, on disk; false for the first ten."""
        event_id = turn.incoming.event_id
        tries = self._tries.get(event_id, 0) + 1
        counting = DBOS.update_workflow_attributes_async(_workflow_id(event_id), {"tries": tries})
        with contextlib.suppress(SQLAlchemyError):
            await asyncio.create_task(counting, context=Context())  # as nobody's step
        return tries > GIVE_UP_AFTER

    async def _guarded(self, turn: Turn) -> Outcome:
        """Think, and make an outcome of whatever comes of it. Only the end of the process gets through."""
        turn.thinking = asyncio.create_task(_call(self._think(turn.incoming, replay=turn.replay)))
        try:
            outcome = await turn.thinking
        except asyncio.CancelledError:
            if self._ending():
                raise
            if turn.stopped:
                return await self._when_stopped(turn)
            logger.exception("think was cancelled by nobody", reference=turn.reference)
            return _bug(turn)
        except Exception:  # the per-message guard: no bug may end in silence
            logger.exception("think failed", reference=turn.reference)
            return _bug(turn)
        if (
            self._closing and turn.thinking.cancelling()
        ):  # it made something of our interruption; the next start asks again
            raise asyncio.CancelledError
        return outcome

    def _ending(self) -> bool:
        task = asyncio.current_task()
        return self._closing or (task is not None and task.cancelling() > 0)

    async def _when_stopped(self, turn: Turn) -> Outcome:
        try:
            return await self._stopped(turn.incoming)
        except Exception:  # the same guard, for what a stopped turn ends in
            logger.exception("no outcome for a stopped turn", reference=turn.reference)
            return _bug(turn)

    async def _deliver_step(self, turn: Turn, outcome: Outcome) -> str:
        if self._closing:
            raise asyncio.CancelledError
        turn.outcome = outcome
        turn.delivering = asyncio.create_task(self._deliver_patiently(turn, outcome))
        try:
            await turn.delivering
        except asyncio.CancelledError:
            if self._ending():
                raise
            logger.exception("deliver was cancelled by nobody", reference=turn.reference)
            return "failed"
        except Exception:  # the same guard, on the way back: the next turn must not wait for ever
            logger.exception("not delivered", reference=turn.reference)
            return "failed"
        return "delivered"

    async def _deliver_patiently(self, turn: Turn, outcome: Outcome) -> None:
        for attempt in range(DELIVERY_ATTEMPTS):
            try:
                async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                    await self._deliver(turn.incoming, outcome, replay=turn.replay or attempt > 0)
            except (ChinwagError, TimeoutError) as error:
                if attempt + 1 == DELIVERY_ATTEMPTS or not _retryable(error):
                    raise
                asked_s = getattr(error, "retry_after_s", None) or 0.0
                pause_s = min(max(asked_s, self._retry_wait_s * 2**attempt), LONGEST_PAUSE_S)
                logger.warning("will deliver again", reference=turn.reference, error=str(error), pause_s=pause_s)
                await asyncio.sleep(pause_s)
            else:
                return

    # --- around it ------------------------------------------------------------------------------

    def _launch(self, database: sqlalchemy.Engine) -> None:
        """Start DBOS on this loop. What an earlier process left comes back through its own queue, a second later."""

        async def turn(order: int, message: dict[str, Any]) -> None:
            await self._run(order, message)

        _hush()
        # No limit on recoveries: DBOS would drop the turn without a word. See GIVE_UP_AFTER.
        self._workflow = DBOS.workflow(name=TURN, max_recovery_attempts=None)(turn)
        config = DBOSConfig(
            name=self._application,
            system_database_url=database.url.render_as_string(hide_password=False),
            system_database_engine=database,
            application_version=f"{self._application}-{VERSION}",
            executor_id=self._executor_id,
            serializer=Json(),
            max_executor_threads=THREADS,
            notification_listener_polling_interval_sec=0.2,
            log_level="WARNING",
        )
        with _storage_errors(self._path):
            DBOS(config=config)
            DBOS.launch()

    async def _close(self, database: sqlalchemy.Engine) -> None:
        self._closing = True
        await self._interrupt()
        # DBOS made its pool the loop's own and shuts it down: the loop gets another, which also does the waiting.
        pool = ThreadPoolExecutor(thread_name_prefix="chinwag")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, lambda: DBOS.destroy(destroy_registry=True))
        loop.set_default_executor(pool)
        database.dispose()

    async def _interrupt(self) -> None:
        """End all tasks, deliveries last. Turns that have not ended stay pending in the file."""
        for job in self._jobs:
            job.cancel()
        if ending := self._jobs | self._accepting:
            await asyncio.wait(ending, timeout=CLOSING_TIMEOUT_S)
        for turn in self._turns.values():
            turn.ticket.called.cancel()
            if turn.thinking is not None:
                turn.thinking.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), GOODBYE_S)
        for turn in self._turns.values():
            if turn.delivering is not None:
                turn.delivering.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), CLOSING_TIMEOUT_S)

    async def _wait_for_expected(self) -> None:
        try:
            while self._expected:
                self._joined.clear()
                await asyncio.wait_for(self._joined.wait(), RECOVERY_WAIT_S)
        except TimeoutError:
            logger.warning("turns of an earlier process are late", turns=len(self._expected))

    async def _remove(self, which: dict[str, Any]) -> int:
        removed = 0
        while True:
            old = await DBOS.list_workflows_async(
                name=TURN, limit=SWEEP_BATCH, load_input=False, load_output=False, **which
            )
            if not old:
                return removed
            await DBOS.delete_workflows_async([workflow.workflow_id for workflow in old])
            removed += len(old)

    async def _repeat(
        self, name: str, job: Callable[[], Awaitable[object]], pauses: Iterator[float], *, at_once: bool
    ) -> None:
        for pause_s in pauses:
            if not at_once:
                await asyncio.sleep(pause_s)
            at_once = False
            try:
                await job()
            except Exception:  # the supervisor of the jobs: one failed run is no reason to stop
                logger.exception("a job failed", job=name)


# --- values and files ---------------------------------------------------------------------------


class Json(Serializer):
    """What DBOS writes to the file: JSON, because a pickle runs code when it is read."""

    def name(self) -> str:
        return "json"

    def serialize(self, data: Any) -> str:
        return json.dumps({"$error": repr(data)} if isinstance(data, BaseException) else data)

    def deserialize(self, serialized_data: str) -> Any:
        data = json.loads(serialized_data)
        if isinstance(data, dict) and data.keys() == {"$error"}:
            return StepFailed(data["$error"])
        return data


def _dump(shape: TypeAdapter[Any], value: Any) -> Any:
    return shape.dump_python(value, mode="json")


def _workflow_id(event_id: str) -> str:
    return f"{TURN}:{event_id}"


def _event_id(workflow_id: str) -> str:
    return workflow_id.removeprefix(f"{TURN}:")


async def _call(result: Awaitable[Outcome]) -> Outcome:
    return await result


async def _stopped_unsaid(incoming: Incoming) -> Outcome:
    return Outcome(answer=Answer(text="", reference=log.reference(incoming.event_id), ending="stopped"))


def _bug(turn: Turn) -> Outcome:
    message = f"Something went wrong inside Chinwag. The log has the rest under {turn.reference}."
    return Outcome(problem=Problem(message=message, reference=turn.reference))


def _retryable(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or (isinstance(error, ChinwagError) and error.retryable)


def _retrieve(task: "asyncio.Task[Any]") -> None:
    """The caller may be gone; asyncio need not complain about an error that nobody asks for."""
    if not task.cancelled():
        task.exception()


def _pauses(every: timedelta | None, cron: str | None) -> Iterator[float]:
    """Seconds to wait before each run, for ever."""
    if (every is None) == (cron is None):
        raise ValueError("A job runs either every so often or by a cron line.")
    if every is not None:
        return _evenly(every.total_seconds())
    from croniter import croniter  # type: ignore[import-untyped]  # DBOS brings it

    if not croniter.is_valid(cron):
        raise ValueError(
            f"{cron!r} is no cron line. Five fields are wanted, as in '0 4 * * *' for four in the morning."
        )

    def by_cron() -> Iterator[float]:
        while True:
            now = datetime.now().astimezone()
            yield (croniter(cron, now).get_next(datetime) - now).total_seconds()

    return by_cron()


def _evenly(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def _prepare(path: Path) -> None:
    """Make the file if need be, and find out now whether it can be read and written."""
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            if path.stat().st_size < QUICK_CHECK_MAX_BYTES:
                _check(path, connection)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    path.chmod(0o600)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreDamaged(_sentence(path, sqlite3.SQLITE_CORRUPT))


def _connect(path: Path) -> sqlalchemy.Engine:
    url = sqlalchemy.URL.create("sqlite", database=str(path))
    database = sqlalchemy.create_engine(
        url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=ACCEPT_TIMEOUT_S, hide_parameters=True
    )

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        """As DBOS does for a connection of its own, and WAL: without it the engine is a hundred times slower.

        NORMAL survives every crash of the process; a power cut may cost the last messages.
        """
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("busy_timeout=5000", "foreign_keys=ON", "journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")

    sqlalchemy.event.listen(database, "connect", configure)
    return database


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Say in our words what is wrong with the file."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        raise _KINDS.get(code, DataFolderError)(_sentence(path, code)) from error
    except OSError as error:
        raise DataFolderError(
            f"{path} cannot be used ({error.strerror}). Give the folder to this user, or set CHINWAG_DATA_DIR."
        ) from error


_KINDS: dict[int, type[DataFolderError]] = {
    sqlite3.SQLITE_FULL: StorageFull,
    sqlite3.SQLITE_CORRUPT: StoreDamaged,
    sqlite3.SQLITE_NOTADB: StoreDamaged,
    sqlite3.SQLITE_BUSY: DataFolderBusy,
    sqlite3.SQLITE_LOCKED: DataFolderBusy,
}


def _sentence(path: Path, code: int) -> str:
    kind = _KINDS.get(code)
    if kind is StorageFull:
        return f"No space is left for {path}. Free some, then send the message again; nothing earlier was lost."
    if kind is StoreDamaged:
        return f"{path} is damaged. Stop Chinwag, put back a copy or move the file away, then start again."
    if kind is DataFolderBusy:
        return f"Another process holds {path}. End it, then try again."
    return f"{path} cannot be read or written. Give the file to this user, or set CHINWAG_DATA_DIR to another folder."


class _NoArguments(logging.Filter):
    """Drops the line that DBOS logs for an interrupted task: it repeats the person's message."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Asyncio task cancelled")


def _hush() -> None:
    """Keep DBOS from adding its own handler, which writes to the terminal: it adds one when it finds none."""
    dbos_logger = logging.getLogger("dbos")
    if not dbos_logger.handlers:
        dbos_logger.addHandler(logging.NullHandler())
    if not any(isinstance(one, _NoArguments) for one in dbos_logger.filters):
        dbos_logger.addFilter(_NoArguments())
