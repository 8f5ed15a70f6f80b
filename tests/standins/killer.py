"""Kills a recording bot again and again while it is fed, and looks at what it leaves behind."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.standins.recorder import Event, violations

REPOSITORY = Path(__file__).parents[2]
CHANNELS = 6
MOST_UNANSWERED = 60
"""With more, a bot would spend its short lives on coming back."""


@dataclass
class Report:
    """What came of it."""

    kills: int = 0
    accepted: int = 0
    came_back: int = 0
    thought_again: int = 0
    delivered_again: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass
class Life:
    """A running bot, seen from outside."""

    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    acked: set[str]
    booted: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    came_back: int = 0

    def send(self, event: Event) -> None:
        self.writer.write(f'{{"id": "{event.id}", "channel": "{event.channel}"}}\n'.encode())

    async def listen(self) -> None:
        """Until the bot is gone."""
        with contextlib.suppress(ConnectionError):
            while line := (await self.reader.readline()).decode():
                match line.split():
                    case ["ack", event_id]:
                        self.acked.add(event_id)
                    case ["booted", turns]:
                        self.came_back = int(turns)
                        self.booted.set()
                    case ["ended"]:
                        self.ended.set()


class Killer:
    """Feeds one growing list of events to one bot after another."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder = folder
        self._journal = folder / "journal"
        self._journal.touch()
        self._read = 0
        self._answered = 0
        self._random = random.Random(seed)
        self._fed: list[Event] = []
        self._acked: set[str] = set()
        self._report = Report()

    async def run(self, kills: int) -> Report:
        async with self._birthplace() as birth:
            for n in range(kills):
                await self._one_life(birth, in_recovery=n % 2 == 1)
            await self._last_life(birth)
        return self._concluded()

    async def _one_life(self, birth: "Birth", *, in_recovery: bool) -> None:
        async with birth.life(self._acked) as life:
            listening = asyncio.create_task(life.listen())
            feeding = asyncio.create_task(self._feed(life))
            if in_recovery:
                await asyncio.sleep(self._random.uniform(0, 1.2))
            else:
                await asyncio.wait_for(life.booted.wait(), 30)
                await asyncio.sleep(self._random.uniform(0, 0.6))
            os.kill(life.pid, signal.SIGKILL)
            feeding.cancel()
            await asyncio.wait({feeding, listening})
        self._report.kills += 1
        self._report.came_back += life.came_back

    async def _last_life(self, birth: "Birth") -> None:
        async with birth.life(self._acked) as life:
            listening = asyncio.create_task(life.listen())
            for event in [*self._fed, *self._fed]:
                life.send(event)
            life.writer.write(b"end\n")
            await asyncio.wait_for(life.ended.wait(), 60)
            await listening
        self._report.came_back += life.came_back

    async def _feed(self, life: Life) -> None:
        """What was not acknowledged first, as a platform does; then new events, each twice, and old ones again."""
        for event in self._fed:
            if event.id not in self._acked or self._random.random() < 0.1:
                life.send(event)
        while True:
            await asyncio.sleep(self._random.expovariate(50))
            if self._unanswered() >= MOST_UNANSWERED:
                continue
            new = Event(id=f"e{len(self._fed):06}", channel=f"c{self._random.randrange(CHANNELS)}")
            self._fed.append(new)
            life.send(new)
            life.send(new)
            life.send(self._random.choice(self._fed))

    def _unanswered(self) -> int:
        with self._journal.open("rb") as file:
            file.seek(self._read)
            news = file.read()
        self._read += len(news)
        self._answered += news.count(b"sent ")
        return len(self._fed) - self._answered

    def _concluded(self) -> Report:
        journal = self._journal.read_text().splitlines()
        done = [tuple(line.split()[:2]) for line in journal]
        report = self._report
        report.accepted = len(self._acked)
        report.thought_again = sum(kind == "think" for kind, _ in done) - len(
            {i for kind, i in done if kind == "think"}
        )
        report.delivered_again = sum(k == "deliver" for k, _ in done) - len({i for k, i in done if k == "deliver"})
        report.violations = violations(journal, self._fed, self._acked)
        if missing := [event.id for event in self._fed if event.id not in self._acked]:
            report.violations.append(f"never accepted: {missing}")
        return report

    @contextlib.asynccontextmanager
    async def _birthplace(self) -> AsyncIterator["Birth"]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.standins.recorder", cwd=REPOSITORY, stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        with tempfile.TemporaryDirectory() as short:  # a unix socket's path may have 107 characters
            try:
                yield Birth(self._folder, Path(short) / "s", process.stdin)
            finally:
                process.stdin.close()
                await asyncio.wait_for(process.wait(), 30)


@dataclass
class Birth:
    """Where the next bot comes from."""

    folder: Path
    socket: Path
    stdin: asyncio.StreamWriter

    @contextlib.asynccontextmanager
    async def life(self, acked: set[str]) -> AsyncIterator[Life]:
        arrived: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        arrived = asyncio.get_running_loop().create_future()
        server = await asyncio.start_unix_server(lambda r, w: arrived.set_result((r, w)), self.socket)
        try:
            self.stdin.write(f"{json.dumps({'folder': str(self.folder), 'socket': str(self.socket)})}\n".encode())
            reader, writer = await asyncio.wait_for(arrived, 60)
            _, pid = (await asyncio.wait_for(reader.readline(), 60)).decode().split()
            try:
                yield Life(int(pid), reader, writer, acked)
            finally:
                writer.close()
        finally:
            server.close()
            self.socket.unlink(missing_ok=True)


def _repeats(journal: Sequence[str], kind: str) -> int:
    ids = [line.split()[1] for line in journal if line.startswith(f"{kind} ")]
    return len(ids) - len(set(ids))
