"""From accept to the start of think: `python -m benchmarks.engine [--turns 500] [--at-once 200]`.

The floor is what any durable bot pays: one insert of the same bytes into SQLite (WAL, NORMAL), measured in this run.
"""

import argparse
import asyncio
import contextlib
import resource
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bot.engine import INCOMING, Engine
from bot.messages import Answer, Incoming, Outcome, Person, Place

THINK_S = 0.05


@dataclass
class Clock:
    """Notes when each turn was accepted and when its think began."""

    accepted: dict[str, float] = field(default_factory=dict)
    durable: dict[str, float] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)

    async def accept(self, engine: Engine, incoming: Incoming) -> None:
        self.accepted[incoming.event_id] = time.perf_counter()
        await engine.accept(incoming)
        self.durable[incoming.event_id] = time.perf_counter()

    async def think(self, incoming: Incoming, *, replay: bool) -> Outcome:  # noqa: ARG002  the port has it
        self.begun[incoming.event_id] = time.perf_counter()
        await asyncio.sleep(THINK_S)
        return Outcome(answer=Answer(text="An answer of ordinary length. " * 10))

    async def deliver(self, incoming: Incoming, outcome: Outcome, *, replay: bool) -> None:
        """Nowhere."""

    def since_accept_ms(self, moments: dict[str, float]) -> list[float]:
        return [(moment - self.accepted[event_id]) * 1000 for event_id, moment in moments.items()]


def message(number: int, channel: str) -> Incoming:
    return Incoming(
        event_id=f"{number:020}",
        place=Place(platform="bench", workspace="local", channel=channel),
        author=Person(id="1", name="Ann"),
        text="How long does the engine take to begin? " * 5,
        sent_at=datetime.now(UTC),
    )


def floor_ms(folder: Path, inserts: int) -> list[float]:
    with contextlib.closing(sqlite3.connect(folder / "floor.db", isolation_level=None)) as connection:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE inbox (id TEXT PRIMARY KEY, message TEXT)")
        taken = []
        for number in range(inserts):
            begun = time.perf_counter()
            incoming = message(number, "floor")
            connection.execute("INSERT INTO inbox VALUES (?, ?)", (incoming.event_id, INCOMING.dump_json(incoming)))
            taken.append((time.perf_counter() - begun) * 1000)
    return taken


@contextlib.asynccontextmanager
async def opened(folder: Path, clock: Clock) -> AsyncIterator[Engine]:
    async with Engine.open(data_dir=folder, executor_id="bench", think=clock.think, deliver=clock.deliver) as engine:
        await engine.boot()
        for number in range(20):  # compile what is compiled once
            await engine.accept(message(number, "warm"))
        await engine.drained()
        clock.begun.clear()
        yield engine


async def idle(folder: Path, turns: int) -> Clock:
    """One turn after another, each to an idle engine."""
    clock = Clock()
    async with opened(folder, clock) as engine:
        for number in range(1000, 1000 + turns):
            await clock.accept(engine, message(number, str(number % 20)))
            await engine.drained()
            await asyncio.sleep(0.005)
    return clock


async def at_once(folder: Path, turns: int) -> tuple[Clock, float]:
    """That many conversations in the same moment; also CPU milliseconds per whole turn."""
    clock = Clock()
    async with opened(folder, clock) as engine:
        before = _cpu_s()
        await asyncio.gather(*(clock.accept(engine, message(1000 + n, str(n))) for n in range(turns)))
        await engine.drained()
        return clock, (_cpu_s() - before) * 1000 / turns


async def resting_cpu(folder: Path, seconds: float = 10.0) -> float:
    """Percent of one core that an engine uses with nothing to do."""
    async with opened(folder, Clock()):
        before = _cpu_s()
        await asyncio.sleep(seconds)
        return (_cpu_s() - before) / seconds * 100


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _row(table: Table, name: str, taken_ms: Sequence[float]) -> None:
    ordered = sorted(taken_ms)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{ordered[-1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        floor = floor_ms(folder, arguments.turns)
        alone = asyncio.run(idle(folder / "idle", arguments.turns))
        crowd, cpu_ms = asyncio.run(at_once(folder / "crowd", arguments.at_once))
        resting = asyncio.run(resting_cpu(folder / "rest"))
    table = Table("", "p50 ms", "p99 ms", "most ms")
    _row(table, "floor: bare SQLite insert", floor)
    _row(table, "accept returns, idle", alone.since_accept_ms(alone.durable))
    _row(table, "accept to think, idle", alone.since_accept_ms(alone.begun))
    _row(table, f"accept to think, {arguments.at_once} at once", crowd.since_accept_ms(crowd.begun))
    console = Console()
    console.print(table)
    console.print(f"CPU per whole turn {cpu_ms:.1f} ms; at rest {resting:.1f} % of a core; think lasts {THINK_S} s")


if __name__ == "__main__":
    main()
