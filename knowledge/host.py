"""The parent's side of the index's process: starts it at first use, starts it anew when it died."""

import asyncio
import contextlib
import json
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bot.errors import KnowledgeUnavailable
from knowledge.process import module_environment

START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where the process answers, and the token that it wants as `api-key`."""

    url: str
    token: str = field(repr=False)


class Host:
    """Owns one `knowledge.child`. `folder` is the index's; None for the encoder alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._endpoint: Endpoint | None = None
        self._starting = asyncio.Lock()
        self._failures, self._not_before = 0, 0.0

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def ended(self) -> None:
        """Return when no process runs."""
        if self._process:
            await self._process.wait()

    async def endpoint(self) -> Endpoint:
        """Where the running process answers; starts it when there is none. Raises `KnowledgeUnavailable`.

        After a death it starts at once; dying again and again, it rests twice as long each time, up to 30 s.
        """
        async with self._starting:
            if self._endpoint and self.pid:
                return self._endpoint
            if self._endpoint:
                self._fail()
            if (rest := self._not_before - time.monotonic()) > 0:
                raise KnowledgeUnavailable(
                    "The knowledge's own process keeps ending. Look at `chinwag doctor`.", retry_after_s=rest
                )
            self._endpoint = None
            self._endpoint = await self._start()
            return self._endpoint

    def works(self) -> None:
        """Tell that a request was answered: the next death counts as the first."""
        self._failures = 0

    def _fail(self) -> None:
        self._failures += 1
        pause = 0.0 if self._failures < 2 else min(LONGEST_PAUSE_S, 0.5 * 2.0**self._failures)
        self._not_before = time.monotonic() + pause

    async def _start(self) -> Endpoint:
        token = secrets.token_urlsafe(32)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "knowledge.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=module_environment(),
            start_new_session=True,  # Ctrl-C ends the bot, which then ends this one in order
        )
        self._process = process
        start = {"token": token, "folder": str(self._folder) if self._folder else None}
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(start).encode() + b"\n")
            async with asyncio.timeout(START_LIMIT_S):
                await process.stdin.drain()
                answer = json.loads(await process.stdout.readline() or b"{}")
        except (TimeoutError, OSError, ValueError) as error:
            await self.close()
            self._fail()
            raise KnowledgeUnavailable("The knowledge's own process does not start. Try `chinwag doctor`.") from error
        except asyncio.CancelledError:
            await self.close()
            raise
        if "port" not in answer:
            await self.close()
            self._fail()
            raise KnowledgeUnavailable(
                answer.get("error", "The knowledge's own process ended at once. Is chinwag[knowledge] installed?")
            )
        return Endpoint(url=f"http://127.0.0.1:{answer['port']}", token=token)

    async def close(self) -> None:
        """End the process: it flushes what it holds; after ten seconds it is killed."""
        process, self._process, self._endpoint = self._process, None, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
