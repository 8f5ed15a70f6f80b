"""The durable engine, in one process. What SIGKILL does to it is in test_engine_kill.py."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import structlog

import bot.engine
from bot import log
from bot.engine import Engine
from bot.errors import ChinwagError, DataFolderBusy, DataFolderError, DeliveryFailed, StorageFull, StoreDamaged
from bot.messages import Answer, Attachment, Incoming, Outcome, Person, Place, Problem

pytestmark = pytest.mark.timeout(60)

Log = list[structlog.typing.EventDict] | list[Any]


@pytest.fixture(autouse=True)
def logged() -> Iterator[Log]:
    """The log lines of a test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def message(event_id: str, *, channel: str = "main", text: str = "hello") -> Incoming:
    return Incoming(
        event_id=event_id,
        place=Place(platform="console", workspace="local", channel=channel),
        author=Person(id="1", name="Ann"),
        text=text,
        sent_at=datetime(2026, 11, 20, 12, tzinfo=UTC),
        attachments=(Attachment(id="a", filename="a.txt"),),
    )


@dataclass
class Core:
    """Thinks and delivers by script, and remembers what it was asked."""

    gated: bool = False
    thoughts: list[tuple[str, bool]] = field(default_factory=list)
    thinking: set[str] = field(default_factory=set)
    most_at_once: int = 0
    deliveries: list[tuple[str, Outcome, bool]] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    think_raises: BaseException | None = None
    deliver_raises: list[Exception] = field(default_factory=list)
    deliver_hangs: bool = False

    async def think(self, incoming: Incoming, *, replay: bool) -> Outcome:
        self.thoughts.append((incoming.event_id, replay))
        self.thinking.add(incoming.event_id)
        self.most_at_once = max(self.most_at_once, len(self.thinking))
        await self._notify()
        try:
            if self.gated:
                await self.gate(incoming.event_id).wait()
            if self.think_raises:
                raise self.think_raises
        finally:
            self.thinking.discard(incoming.event_id)
        return Outcome(answer=Answer(text=f"re: {incoming.text}", timings_ms={"model": 1.5}))

    async def deliver(self, incoming: Incoming, outcome: Outcome, *, replay: bool) -> None:
        self.deliveries.append((incoming.event_id, outcome, replay))
        await self._notify()
        if self.deliver_hangs:
            await asyncio.Event().wait()
        if self.deliver_raises:
            raise self.deliver_raises.pop(0)

    def gate(self, event_id: str) -> asyncio.Event:
        return self.gates.setdefault(event_id, asyncio.Event())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    @property
    def thought(self) -> list[str]:
        return [event_id for event_id, _ in self.thoughts]

    @property
    def delivered(self) -> list[str]:
        return [event_id for event_id, _, _ in self.deliveries]


@contextlib.asynccontextmanager
async def running(
    folder: Path, core: Core, *, executor_id: str = "test", recover: bool = True, boot: bool = True
) -> AsyncIterator[Engine]:
    async with Engine.open(
        data_dir=folder,
        executor_id=executor_id,
        think=core.think,
        deliver=core.deliver,
        recover=recover,
        retry_wait_s=0.01,
    ) as engine:
        if boot:
            await engine.boot()
        yield engine


def rows(folder: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "engine.db", isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces: another thread's end, or a row that DBOS writes."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No database file grows any more."""

    def freeze(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # SQLite takes the present size for the least

    sqlalchemy.event.listen(sqlalchemy.pool.Pool, "connect", freeze)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.pool.Pool, "connect", freeze)


# --- one answer for each message --------------------------------------------------------------


async def test_a_message_ends_in_one_delivered_outcome(tmp_path: Path) -> None:
    """What think made of a message is what deliver gets, unchanged."""
    core = Core()
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1", text="naïve 🦜 \ud800"))
        await engine.drained()

    assert core.thoughts == [("1", False)]
    assert core.deliveries == [
        ("1", Outcome(answer=Answer(text="re: naïve 🦜 \ud800", timings_ms={"model": 1.5})), False)
    ]


async def test_the_same_event_is_answered_once(tmp_path: Path) -> None:
    """A redelivery changes nothing: at the same moment, while the turn runs, when it has ended, and after a restart."""
    core = Core(gated=True)
    async with running(tmp_path, core) as engine:
        await asyncio.gather(*(engine.accept(message("1")) for _ in range(3)))
        await core.until(lambda: bool(core.thinking))
        await engine.accept(message("1"))
        core.gate("1").set()
        await engine.drained()
        await engine.accept(message("1"))
        await engine.drained()
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()

    assert core.thought == ["1"]
    assert core.delivered == ["1"]


async def test_a_redelivered_event_does_not_hold_up_the_next(tmp_path: Path) -> None:
    """A known event takes no place in the line."""
    core = Core()
    async with running(tmp_path, core) as engine:
        for event_id in ("1", "1", "2", "1", "3"):
            await engine.accept(message(event_id))
            await engine.drained()

    assert core.thought == ["1", "2", "3"]


async def test_a_caller_who_gives_up_leaves_no_stranded_turn(tmp_path: Path) -> None:
    """A message that was stored is answered although nobody waited for accept to return."""
    core = Core()
    async with running(tmp_path, core) as engine:
        waiting = asyncio.create_task(engine.accept(message("1")))
        await asyncio.sleep(0)
        waiting.cancel()
        await core.until(lambda: core.delivered == ["1"])


# --- order ------------------------------------------------------------------------------------


async def test_turns_of_a_place_run_one_at_a_time_in_order_of_acceptance(tmp_path: Path) -> None:
    """Order is that of acceptance, whatever the ids, with all accepted at the same moment."""
    core = Core()
    ids = [str((7 * n) % 30) for n in range(30)]
    async with running(tmp_path, core) as engine:
        await asyncio.gather(*(engine.accept(message(event_id)) for event_id in ids))
        await engine.drained()

    assert core.thought == ids
    assert core.delivered == ids
    assert core.most_at_once == 1


async def test_the_next_turn_begins_after_the_delivery_of_the_one_before(tmp_path: Path) -> None:
    """A place sees an answer before the bot thinks about the next question."""
    core = Core()
    seen: list[str] = []

    async def deliver(incoming: Incoming, outcome: Outcome, *, replay: bool) -> None:
        await asyncio.sleep(0.02)
        seen.append(f"delivered {incoming.event_id}")

    async def think(incoming: Incoming, *, replay: bool) -> Outcome:
        seen.append(f"thought {incoming.event_id}")
        return await core.think(incoming, replay=replay)

    async with Engine.open(data_dir=tmp_path, executor_id="test", think=think, deliver=deliver) as engine:
        await engine.boot()
        await asyncio.gather(engine.accept(message("1")), engine.accept(message("2")))
        await engine.drained()

    assert seen == ["thought 1", "delivered 1", "thought 2", "delivered 2"]


async def test_places_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Twenty places think at the same time."""
    core = Core(gated=True)
    async with running(tmp_path, core) as engine:
        for n in range(20):
            await engine.accept(message(str(n), channel=str(n)))
        await core.until(lambda: len(core.thinking) == 20)
        for n in range(20):
            core.gate(str(n)).set()
        await engine.drained()

    assert sorted(core.delivered) == sorted(str(n) for n in range(20))


# --- restarts ---------------------------------------------------------------------------------


async def test_a_turn_cut_off_by_shutdown_is_thought_again(tmp_path: Path) -> None:
    """Closing interrupts think and records nothing; the next start thinks again, told that it is a replay."""
    before, after = Core(gated=True), Core()
    async with running(tmp_path, before) as engine:
        await engine.accept(message("1"))
        await before.until(lambda: before.thinking == {"1"})
    async with running(tmp_path, after, boot=False) as engine:
        assert await engine.boot() == 1
        await engine.drained()

    assert before.delivered == []
    assert not before.thinking
    assert after.thoughts == [("1", True)]
    assert [(event_id, replay) for event_id, _, replay in after.deliveries] == [("1", True)]


async def test_an_interrupted_program_leaves_its_turns_for_the_next_start(tmp_path: Path) -> None:
    """Ctrl-C cancels the program's task; what was being thought is thought again."""
    before, after = Core(gated=True), Core()

    async def program() -> None:
        async with running(tmp_path, before) as engine:
            await engine.accept(message("1"))
            await engine.drained()

    task = asyncio.create_task(program())
    await before.until(lambda: before.thinking == {"1"})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with running(tmp_path, after) as engine:
        await engine.drained()

    assert before.delivered == []
    assert after.thoughts == [("1", True)]


async def test_a_think_that_answers_when_interrupted_is_not_believed_at_shutdown(tmp_path: Path) -> None:
    """What think makes of the shutdown's interruption is not the person's answer."""
    thinking = asyncio.Event()
    core = Core()

    async def stubborn(incoming: Incoming, *, replay: bool) -> Outcome:
        thinking.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Outcome(answer=Answer(text="cut short", ending="stopped"))

    async with Engine.open(data_dir=tmp_path, executor_id="test", think=stubborn, deliver=core.deliver) as engine:
        await engine.boot()
        await engine.accept(message("1"))
        await asyncio.wait_for(thinking.wait(), 10)
    assert core.delivered == []
    async with running(tmp_path, core) as engine:
        await engine.drained()

    assert [outcome.answer.text for _, outcome, _ in core.deliveries if outcome.answer] == ["re: hello"]


async def test_a_thought_that_was_not_delivered_is_delivered_without_thinking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that was paid for is not paid for again; deliver is told that it may have been sent."""
    monkeypatch.setattr(bot.engine, "GOODBYE_S", 0.05)
    before, after = Core(deliver_hangs=True), Core()
    async with running(tmp_path, before) as engine:
        await engine.accept(message("1", text="expensive"))
        await before.until(lambda: before.delivered == ["1"])
    async with running(tmp_path, after) as engine:
        await engine.drained()

    assert after.thoughts == []
    assert after.deliveries == [("1", Outcome(answer=Answer(text="re: expensive", timings_ms={"model": 1.5})), True)]


async def test_order_is_kept_through_a_restart(tmp_path: Path) -> None:
    """What waited comes back in order of acceptance, and before what is accepted meanwhile."""
    before, after = Core(gated=True), Core()
    ids = ["5", "2", "9", "1", "7"]
    async with running(tmp_path, before) as engine:
        for event_id in ids:
            await engine.accept(message(event_id))
        await before.until(lambda: bool(before.thinking))
    async with running(tmp_path, after, boot=False) as engine:
        await engine.accept(message("0"))
        await engine.accept(message("9"))
        assert await engine.boot() == 5
        await engine.drained()

    assert after.thought == [*ids, "0"]
    assert after.delivered == [*ids, "0"]


async def test_turns_begin_only_after_boot(tmp_path: Path) -> None:
    """An accepted message waits until the older ones are known."""
    core = Core()
    async with running(tmp_path, core, boot=False) as engine:
        await engine.accept(message("1"))
        await asyncio.sleep(0.1)
        assert core.thought == []
        assert await engine.boot() == 0
        await engine.drained()

    assert core.thoughts == [("1", False)]


async def test_a_renamed_machine_finds_its_turns(tmp_path: Path) -> None:
    """Turns left under another executor id come back too: the folder has one owner."""
    before, after = Core(gated=True), Core()
    async with running(tmp_path, before, executor_id="container-1") as engine:
        await engine.accept(message("1"))
        await before.until(lambda: bool(before.thinking))
    async with running(tmp_path, after, executor_id="container-2") as engine:
        await engine.drained()

    assert after.thoughts == [("1", True)]


@pytest.mark.parametrize("status", ["PENDING", "ENQUEUED"])
async def test_a_command_that_runs_once_leaves_other_turns_alone(tmp_path: Path, status: str) -> None:
    """With recover=False a command sees to its own turn only, at any stage of the others' recovery."""
    bot_core, command, later = Core(gated=True), Core(), Core()
    async with running(tmp_path, bot_core) as engine:
        await engine.accept(message("1"))
        await bot_core.until(lambda: bool(bot_core.thinking))
    if status == "ENQUEUED":
        rows(tmp_path, "UPDATE workflow_status SET status='ENQUEUED', queue_name='_dbos_internal_queue'")
    async with running(tmp_path, command, recover=False, boot=False) as engine:
        await engine.accept(message("ask"))
        await engine.drained()
        await asyncio.sleep(1.3)  # the queue is looked at once a second
    async with running(tmp_path, later) as engine:
        await engine.drained()

    assert command.thought == ["ask"]
    assert later.thought == ["1"]


async def test_a_turn_that_no_process_survives_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that may be what ends the process ends in a problem; one that only waited does not."""
    monkeypatch.setattr(bot.engine, "GIVE_UP_AFTER", 1)
    before, again, after = Core(gated=True), Core(gated=True), Core()
    async with running(tmp_path, before) as engine:
        await engine.accept(message("1"))
        await engine.accept(message("2"))
        await before.until(lambda: before.thinking == {"1"})
    async with running(tmp_path, again):
        await again.until(lambda: again.thinking == {"1"})
    async with running(tmp_path, after) as engine:
        await engine.drained()

    assert after.thought == ["2"]
    assert [outcome.problem is not None for _, outcome, _ in after.deliveries] == [True, False]


# --- stopping ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stoppable(folder: Path, core: Core) -> AsyncIterator[Engine]:
    async def stopped(incoming: Incoming) -> Outcome:
        return Outcome(answer=Answer(text=f"so far: {incoming.event_id}", ending="stopped"))

    async with Engine.open(
        data_dir=folder, executor_id="test", think=core.think, deliver=core.deliver, stopped=stopped
    ) as engine:
        await engine.boot()
        yield engine


async def test_stopping_a_running_turn_interrupts_it_and_delivers_what_was_written(tmp_path: Path) -> None:
    """Think is cancelled at once, and the turn ends in what `stopped` says; the next turn goes on."""
    core = Core(gated=True)
    async with stoppable(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.accept(message("2"))
        await core.until(lambda: core.thinking == {"1"})
        assert await engine.cancel("1")
        await core.until(lambda: core.thinking == {"2"})
        core.gate("2").set()
        await engine.drained()

    assert core.delivered == ["1", "2"]
    first = core.deliveries[0][1].answer
    assert first is not None
    assert (first.text, first.ending) == ("so far: 1", "stopped")


async def test_a_stopped_think_may_end_in_an_outcome_of_its_own(tmp_path: Path) -> None:
    """A core that catches the stop has the last word."""
    core, thinking = Core(), asyncio.Event()

    async def think(incoming: Incoming, *, replay: bool) -> Outcome:
        thinking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Outcome(answer=Answer(text="half an ans", ending="stopped"))
        raise AssertionError

    async with Engine.open(data_dir=tmp_path, executor_id="test", think=think, deliver=core.deliver) as engine:
        await engine.boot()
        await engine.accept(message("1"))
        await asyncio.wait_for(thinking.wait(), 10)
        assert await engine.cancel("1")
        assert await engine.cancel("1")
        await engine.drained()

    assert [outcome.answer.text for _, outcome, _ in core.deliveries if outcome.answer] == ["half an ans"]


async def test_stopping_a_waiting_turn_ends_it_without_thinking(tmp_path: Path) -> None:
    """It delivers at once, does not wait for the turns before it, and the line goes on behind it."""
    core = Core(gated=True)
    async with stoppable(tmp_path, core) as engine:
        for event_id in ("1", "2", "3"):
            await engine.accept(message(event_id))
        await core.until(lambda: core.thinking == {"1"})
        assert await engine.cancel("2")
        await core.until(lambda: core.delivered == ["2"])
        core.gate("1").set()
        core.gate("3").set()
        await engine.drained()

    assert core.thought == ["1", "3"]
    assert core.delivered == ["2", "1", "3"]


async def test_there_is_nothing_to_stop_after_the_end(tmp_path: Path) -> None:
    """An unknown turn and an ended one cannot be stopped."""
    core = Core()
    async with stoppable(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()
        assert not await engine.cancel("1")
        assert not await engine.cancel("unknown")


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), asyncio.CancelledError()])
async def test_a_think_that_fails_ends_in_a_problem_with_a_reference(
    tmp_path: Path, error: BaseException, logged: Log
) -> None:
    """A bug is no reason for silence: the log has it under the person's reference, and the next turn goes on."""
    core = Core(think_raises=error)
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()
        core.think_raises = None
        await engine.accept(message("2"))
        await engine.drained()

    problem = core.deliveries[0][1].problem
    assert isinstance(problem, Problem)
    assert problem.reference in problem.message
    assert "a bug" not in problem.message
    assert [line["reference"] for line in logged if line.get("exc_info")] == [problem.reference]
    assert core.delivered == ["1", "2"]


async def test_an_outcome_that_cannot_be_written_is_delivered_all_the_same(tmp_path: Path) -> None:
    """What JSON cannot hold is lost to a replay, not to the person."""
    core = Core()

    async def think(incoming: Incoming, *, replay: bool) -> Outcome:
        return Outcome(answer=Answer(text="here", timings_ms={"model": object()}))  # type: ignore[dict-item]

    async with Engine.open(data_dir=tmp_path, executor_id="test", think=think, deliver=core.deliver) as engine:
        await engine.boot()
        await engine.accept(message("1"))
        await engine.drained()

    assert [outcome.answer.text for _, outcome, _ in core.deliveries if outcome.answer] == ["here"]


async def test_a_delivery_is_tried_again(tmp_path: Path) -> None:
    """After a retryable error deliver is called again, told that the first attempt may have been sent."""
    core = Core(deliver_raises=[DeliveryFailed("busy", retry_after_s=0.02), DeliveryFailed("busy"), TimeoutError()])
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()

    assert [replay for _, _, replay in core.deliveries] == [False, True, True, True]
    assert core.thought == ["1"]


@pytest.mark.parametrize(
    ("errors", "attempts"),
    [([DeliveryFailed("gone") for _ in range(20)], 6), ([ChinwagError("no")], 1), ([ZeroDivisionError()], 1)],
)
async def test_a_delivery_that_never_works_does_not_block_the_place(
    tmp_path: Path, errors: list[Exception], attempts: int, logged: Log
) -> None:
    """After six attempts, or one where another would be no use, it is logged and the next turn begins."""
    core = Core(deliver_raises=errors)
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()
        core.deliver_raises.clear()
        await engine.accept(message("2"))
        await engine.drained()

    assert core.delivered == ["1"] * attempts + ["2"]
    assert [line["reference"] for line in logged if line["event"] == "not delivered"] == [log.reference("1")]


async def test_a_delivery_that_hangs_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that never returns does not block its place for ever."""
    monkeypatch.setattr(bot.engine, "DELIVERY_TIMEOUT_S", 0.02)
    core = Core(deliver_hangs=True)
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()

    assert core.delivered == ["1"] * 6


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A file that is no database, and one that was overwritten in the middle, are refused with what to do."""
    path = tmp_path / "engine.db"
    path.write_bytes(b"not a database at all" * 400)
    with pytest.raises(StoreDamaged, match=r"engine\.db is damaged"):
        async with running(tmp_path, Core()):
            pass
    path.unlink()
    async with running(tmp_path, Core()) as engine:
        for n in range(50):
            await engine.accept(message(str(n), text="x" * 2000))
        await engine.drained()
    with path.open("r+b") as file:
        file.seek(4096 * 4)
        file.write(b"\xa5" * 4096 * 20)
    with pytest.raises(StoreDamaged, match="Stop Chinwag"):
        async with running(tmp_path, Core()):
            pass


async def test_a_locked_file_is_named(tmp_path: Path) -> None:
    """A file that another process holds is refused within seconds."""
    async with running(tmp_path, Core()):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "engine.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataFolderBusy, match="Another process holds"):
            async with running(tmp_path, Core()):
                pass


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A data folder that is a file is refused."""
    (tmp_path / "file").touch()
    with pytest.raises(DataFolderError, match="CHINWAG_DATA_DIR"):
        async with running(tmp_path / "file", Core()):
            pass


async def test_a_full_disk_at_the_start_is_named(tmp_path: Path) -> None:
    """Without room for its tables the engine does not open, and a second try with room does."""
    with full_disk(), pytest.raises(StorageFull, match="No space is left for"):
        async with running(tmp_path, Core()):
            pass
    core = Core()
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1"))
        await engine.drained()
    assert core.delivered == ["1"]


async def test_a_full_disk_refuses_new_messages_and_loses_none(tmp_path: Path) -> None:
    """What does not fit is refused; sent again when there is room, it is answered once."""
    core = Core()
    async with running(tmp_path, core):
        pass
    with full_disk():
        async with running(tmp_path, core) as engine:
            with pytest.raises(StorageFull, match="No space is left for"):
                await engine.accept(message("1", text="long " * 50_000))
    async with running(tmp_path, core) as engine:
        await engine.accept(message("1", text="long " * 50_000))
        await engine.drained()

    assert core.thoughts == [("1", False)]


async def test_a_disk_that_fills_up_while_thinking_costs_no_answer(tmp_path: Path) -> None:
    """An answer that cannot be recorded is delivered all the same."""
    core = Core()

    async def think(incoming: Incoming, *, replay: bool) -> Outcome:
        return Outcome(answer=Answer(text="long " * 50_000))

    async with running(tmp_path, core):
        pass
    with full_disk():
        async with Engine.open(data_dir=tmp_path, executor_id="test", think=think, deliver=core.deliver) as engine:
            await engine.boot()
            await engine.accept(message("1"))
            await engine.drained()

    assert core.delivered == ["1"]
    assert core.deliveries[0][1].answer is not None


# --- housekeeping -----------------------------------------------------------------------------


async def test_old_turns_are_removed_and_young_ones_kept(tmp_path: Path) -> None:
    """Ended turns go when they are older than 7 days, whatever shorter time is asked for; pending ones stay."""
    core = Core(gated=True)
    async with Engine.open(
        data_dir=tmp_path, executor_id="test", think=core.think, deliver=core.deliver, retention_days=1
    ) as engine:
        await engine.boot()
        for event_id in ("old", "young", "pending"):
            await engine.accept(message(event_id, channel=event_id))
        core.gate("old").set()
        core.gate("young").set()
        await core.until(lambda: len(core.deliveries) == 2)
        await eventually(
            lambda: rows(tmp_path, "SELECT count(*) FROM workflow_status WHERE status='SUCCESS'") == [(2,)]
        )
        for event_id, days in (("old", 8), ("young", 6), ("pending", 300)):
            moment = int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000)
            rows(
                tmp_path,
                f"UPDATE workflow_status SET created_at={moment}, updated_at={moment}, "
                f"completed_at=CASE WHEN completed_at IS NULL THEN NULL ELSE {moment} END "
                f"WHERE workflow_uuid='turn:{event_id}'",
            )
        assert await engine.sweep() == 1
        left = rows(tmp_path, "SELECT workflow_uuid FROM workflow_status ORDER BY 1")
        steps = rows(tmp_path, "SELECT DISTINCT workflow_uuid FROM operation_outputs")

    assert left == [("turn:pending",), ("turn:young",)]
    assert steps == [("turn:young",)]


async def test_the_rest_of_an_abandoned_command_is_removed(tmp_path: Path) -> None:
    """What a killed one-time command left pending goes with age: nobody will take it up."""
    core = Core(gated=True)
    async with running(tmp_path, core, recover=False) as engine:
        await engine.accept(message("1"))
        await core.until(lambda: bool(core.thinking))
    rows(tmp_path, "UPDATE workflow_status SET created_at=1")
    async with running(tmp_path, core) as engine:
        await eventually(lambda: rows(tmp_path, "SELECT count(*) FROM workflow_status") == [(0,)])


async def test_a_job_runs_again_and_again(tmp_path: Path) -> None:
    """A scheduled job runs at its pace, also after a run that failed."""
    runs: list[int] = []
    enough = asyncio.Event()

    async def job() -> None:
        runs.append(1)
        if len(runs) == 3:
            enough.set()
        raise ValueError("this run only")

    async with running(tmp_path, Core()) as engine:
        engine.schedule("often", job, every=timedelta(milliseconds=5))
        await asyncio.wait_for(enough.wait(), 10)
        with pytest.raises(ValueError, match="no cron line"):
            engine.schedule("never", job, cron="now and then")
        with pytest.raises(ValueError, match="either"):
            engine.schedule("never", job)


async def test_a_cron_line_names_the_next_moment() -> None:
    """The pause before a cron job is at most its period."""
    pauses = bot.engine._pauses(None, "0 * * * *")

    assert 0 < next(pauses) <= 3600


async def test_engines_follow_one_another_and_leave_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three engines in one process, one after the other: no thread stays, and nothing is printed."""
    for n in range(3):
        core = Core()
        async with running(tmp_path / str(n), core) as engine:
            await engine.accept(message("1"))
            await engine.drained()
            assert await asyncio.to_thread(lambda: 1) == 1
        assert core.delivered == ["1"]
        assert await asyncio.to_thread(lambda: 1) == 1

    await eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith(("dbos", "queue-worker"))])
    assert capfd.readouterr() == ("", "")


async def test_two_engines_at_once_are_refused(tmp_path: Path) -> None:
    """One process has one engine, and a closing engine accepts nothing."""
    async with running(tmp_path, Core()) as engine:
        with pytest.raises(RuntimeError, match="close it first"):
            async with running(tmp_path, Core()):
                pass
    with pytest.raises(DataFolderError, match="shutting down"):
        await engine.accept(message("1"))
