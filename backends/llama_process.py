"""llama.cpp's server as a child of ours: started, watched, ended."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bot.errors import WeightsError

LOG = logging.getLogger(__name__)
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 5.0
_LAST_WORDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What to load and how: `places` people at once, each with a window of `context_tokens`."""

    path: Path
    name: str
    places: int
    context_tokens: int
    cache_mib: int = 512
    """Memory for the prompts of conversations that have no place just now."""


class LlamaProcess:
    """A running server. `url` and `key` are how to reach it; nobody else on this machine knows the key."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._listening = asyncio.create_task(self._listen())
        self.key = secrets.token_urlsafe(24)
        self.url = ""

    @classmethod
    async def start(cls, load: Load) -> "LlamaProcess":
        """Start it and wait until the model is loaded. Raises `WeightsError` with what to do."""
        pipe = asyncio.subprocess.PIPE
        child = str(Path(__file__).with_name("llama_child.py"))
        started = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                child,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                limit=1 << 20,
                env=_environment(os.environ),
                start_new_session=True,  # Ctrl-C is for us; we end it when the last answer is given
            )
        )
        try:
            await started._load(load)
        except BaseException:
            await started.stop()
            raise
        return started

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self, timeout_s: float) -> bool:
        """Did it end, or does it within that time?"""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        return not self.alive

    def why(self) -> str:
        """Why it ended, in a few words for a person."""
        code = self._process.returncode or 0
        if code == -signal.SIGKILL:
            return "it was killed, probably because memory ran out"
        if code == -signal.SIGILL:
            return "this processor lacks an instruction that it needs"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"

    async def stop(self) -> None:
        """End it: gently, then not."""
        if self._process.stdin:
            self._process.stdin.close()
        if not await self.ended(_STOP_TIMEOUT_S):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.wait([self._listening])

    async def _load(self, load: Load) -> None:
        settings = {
            "model": str(load.path),
            "name": load.name,
            "places": load.places,
            "context_tokens": load.context_tokens,
            "threads": _cores(),
            "cache_mib": load.cache_mib,
            "key": self.key,
        }
        line = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await self._ask(json.dumps(settings))
        if not line:
            raise await self._failed(load)
        self.url = str(json.loads(line)["url"])
        LOG.info("embedded model %s loaded, process %s", load.name, self.pid)

    async def _ask(self, line: str) -> bytes:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return await self._process.stdout.readline()

    async def _failed(self, load: Load) -> WeightsError:
        if not await self.ended(_STOP_TIMEOUT_S):
            return WeightsError(
                f"The embedded model did not load within {_START_TIMEOUT_S:.0f} s. Is the machine busy?"
            )
        await asyncio.wait([self._listening])
        LOG.error("embedded model %s did not load: %s | %s", load.path, self.why(), " | ".join(self._words))
        if self._process.returncode == -signal.SIGKILL:
            need = load.path.stat().st_size * 2 / 1e9  # weights, plus as much again for windows and buffers
            return WeightsError(
                f"There was not enough memory to load the embedded model (about {need:.1f} GB). "
                "Close something, or set CHINWAG_MODEL=small."
            )
        if self._process.returncode == -signal.SIGILL:
            return WeightsError(f"The embedded model cannot run here: {self.why()}. Use a model server instead.")
        return WeightsError(
            f"The model file {load.path.name} could not be loaded; the log says why. "
            "Check CHINWAG_MODEL, or delete the file to have it fetched again."
        )

    async def _listen(self) -> None:
        """Keep the last lines of its standard error, for the log."""
        assert self._process.stderr
        while line := await self._process.stderr.readline():
            self._words.append(text := line.decode(errors="replace").rstrip())
            LOG.debug("llama.cpp: %s", text)


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Ours without what is secret, and with threads that sleep while they wait for each other.

    Its threads spin by default: beside one other busy process on two cores that cost four fifths of the speed.
    """
    kept = {name: value for name, value in ours.items() if not name.endswith(("_KEY", "_TOKEN", "_SECRET"))}
    return {"OMP_WAIT_POLICY": "passive", **kept}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
