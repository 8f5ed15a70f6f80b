"""A bot that only records, to be killed: the engine with a scripted think and a platform with idempotency keys.

`python -m tests.standins.recorder` imports everything once and forks a bot for each line that it reads, of the form
`{"folder": ..., "socket": ...}`. A bot connects to the socket and says `pid N`, later `booted N`; it accepts the
events that it is sent, one `{"id": ..., "channel": ...}` a line, and says `ack ID` when an event is durable. At the
line `end` it finishes its turns, says `ended` and exits.

What it does goes to `journal` in the folder, one line each, written before the next thing is done:
`think ID NONCE`, `deliver ID NONCE`, `sent ID CHANNEL`.
"""

import asyncio
import gc
import json
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bot.engine import Engine
from bot.messages import Answer, Incoming, Outcome, Person, Place


@dataclass(frozen=True, slots=True)
class Event:
    id: str
    channel: str


class Recorder:
    """The bot's two ends, as slow as a quick model and a quick platform."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def think(self, incoming: Incoming, *, replay: bool) -> Outcome:
        nonce = uuid.uuid4().hex
        self._write(f"think {incoming.event_id} {nonce}")
        await asyncio.sleep(0.015)
        return Outcome(answer=Answer(text=nonce))

    async def deliver(self, incoming: Incoming, outcome: Outcome, *, replay: bool) -> None:
        assert outcome.answer is not None
        self._write(f"deliver {incoming.event_id} {outcome.answer.text}")
        sent = f"sent {incoming.event_id} {incoming.place.channel}"
        if replay and sent in self._path.read_text().splitlines():
            return
        await asyncio.sleep(0.005)
        self._write(sent)
        await asyncio.sleep(0.005)

    def _write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)


async def live(folder: Path, socket: str) -> None:
    """One life of the bot."""
    reader, writer = await asyncio.open_unix_connection(socket)
    recorder = Recorder(folder)
    accepting: set[asyncio.Task[None]] = set()

    def say(line: str) -> None:
        writer.write(f"{line}\n".encode())

    async def boot(engine: Engine) -> None:
        say(f"booted {await engine.boot()}")

    async def accept(engine: Engine, event: Event) -> None:
        await engine.accept(_incoming(event))
        say(f"ack {event.id}")

    say(f"pid {os.getpid()}")
    async with Engine.open(
        data_dir=folder, executor_id="recorder", think=recorder.think, deliver=recorder.deliver
    ) as engine:
        booting = asyncio.create_task(boot(engine))
        while (line := (await reader.readline()).decode().strip()) != "end":
            if not line:
                return
            task = asyncio.create_task(accept(engine, Event(**json.loads(line))))
            accepting.add(task)
            task.add_done_callback(accepting.discard)
        await asyncio.gather(booting, *accepting)
        await engine.drained()
    say("ended")
    await writer.drain()
    writer.close()


def violations(journal: Sequence[str], fed: Sequence[Event], acked: set[str]) -> list[str]:
    """What is wrong with a journal at the end; nothing, if the engine keeps its promises."""
    found: list[str] = []
    sent: dict[str, list[str]] = defaultdict(list)
    delivering: dict[str, str] = {}
    for line in journal:
        kind, event_id, detail = line.split()
        if kind == "think" and event_id in delivering:
            found.append(f"{event_id} was thought again after its answer was recorded")
        if kind == "deliver" and delivering.setdefault(event_id, detail) != detail:
            found.append(f"{event_id} was delivered with two answers")
        if kind == "sent":
            sent[detail].append(event_id)
    for channel in {event.channel for event in fed}:
        wanted = [event.id for event in fed if event.channel == channel]
        if len(sent[channel]) != len(set(sent[channel])):
            found.append(f"{channel}: answered twice: {[i for i in set(sent[channel]) if sent[channel].count(i) > 1]}")
        if lost := [i for i in wanted if i in acked and i not in sent[channel]]:
            found.append(f"{channel}: accepted and lost: {lost}")
        order = list(dict.fromkeys(sent[channel]))
        if order != [event_id for event_id in wanted if event_id in sent[channel]]:
            found.append(f"{channel}: out of order: {order}")
    return found


def _incoming(event: Event) -> Incoming:
    return Incoming(
        event_id=event.id,
        place=Place(platform="recorder", workspace="test", channel=event.channel),
        author=Person(id="1", name="Ann"),
        text="hello",
        sent_at=datetime.now(UTC),
    )


def main() -> None:
    gc.freeze()
    for line in sys.stdin:
        life = json.loads(line)
        if os.fork() == 0:
            asyncio.run(live(Path(life["folder"]), life["socket"]))
            os._exit(0)
        while True:  # collect those that have died
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    break
            except ChildProcessError:
                break


if __name__ == "__main__":
    main()
