"""The model that comes along: llama.cpp in a child process, spoken to over the openai wire.

Nothing happens until the first question; then the weights are fetched, checked and loaded, and everybody who waits
sees how far it is. Four people are answered at once, the fifth is told the place in the line. The figures behind this:
two cores give 15 tokens a second to one, 29 shared by four, and read 70 tokens of prompt a second; a prefix that is
still in its place costs nothing, so a second turn's first word comes in 0.3 s.
"""

import asyncio
import contextlib
import importlib.util
import logging
import platform
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from backends import weights
from backends.catalog import Weights
from backends.llama_process import LlamaProcess, Load
from backends.openai import OpenAIBackend, open_client
from backends.tokens import estimate
from bot.errors import MissingExtra, ModelBroke, ModelError, ModelUnreachable, WeightsError
from bot.messages import SMALL, Finished, Health, ModelLimits, ModelRequest, Piece, Progress, Waiting
from bot.ports import BackendOptions, ModelBackend

LOG = logging.getLogger(__name__)
PLACES = 4
CONTEXT_TOKENS = 4096
_TICK_S = 0.3
_SILENCE_S = 600.0
"""Four long prompts at once on two slow cores take minutes until the first word, without any fault."""


def open_backend(options: BackendOptions) -> AbstractAsyncContextManager[ModelBackend]:
    """Open the embedded model; nothing is fetched or loaded before it is asked.

    `options.model`: nothing, `small`, or a path. `options.extra` may hold `cache_dir` (a folder) and `places`.
    Raises `MissingExtra` on entering.
    """
    return open_embedded(options)


@asynccontextmanager
async def open_embedded(options: BackendOptions) -> AsyncIterator["EmbeddedBackend"]:
    """The same, as the class that it is."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra.named("embedded", "The embedded model")
    backend = EmbeddedBackend(options)
    try:
        yield backend
    finally:
        await backend.close()


class EmbeddedBackend:
    """One child process for everybody. Made by `open_embedded`, which ends it."""

    def __init__(self, options: BackendOptions) -> None:
        chosen = options.extra.get("cache_dir")
        self._options = options
        self._folder = weights.cache_folder(Path(chosen) if chosen else None)
        self._places = int(options.extra.get("places", PLACES))
        self._window = options.context_tokens or CONTEXT_TOKENS
        self._line = Line(self._places)
        self._server: _Server | None = None
        self._starting: asyncio.Task[_Server] | None = None
        self._state = Progress(stage="Starting the model")

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """Wait for the model and a free place, saying so; then answer. Once more if the process died before a word."""
        async with contextlib.AsyncExitStack() as stack:
            for notes in (self._ready(), self._line.wait(stack)):
                async with aclosing(notes):
                    async for note in notes:
                        yield note
            async with aclosing(self._answer(request)) as pieces:
                async for piece in pieces:
                    yield piece

    async def limits(self) -> ModelLimits:
        """Known without loading anything. Raises `WeightsError` for a name that means no model."""
        return ModelLimits(
            model=self._name(),
            context_tokens=self._window,
            output_tokens=max(1, self._window // 4),
            profile=SMALL,
            local=True,
        )

    async def count_tokens(self, request: ModelRequest) -> int:
        """By the model's own tokenizer once it is loaded, until then an estimate."""
        if self._server and self._server.alive:
            return await self._server.client.count_tokens(request)
        return estimate(request)

    async def health(self) -> Health:
        """Can it run here, and are the weights here? Loads nothing."""
        name = "embedded model"
        try:
            check_processor()
            here = await asyncio.to_thread(weights.find, self._options.model, self._folder)
        except WeightsError as error:
            return Health(name=name, ok=False, detail=str(error), fix="Set CHINWAG_BACKEND to a model server.")
        if here is None:
            return Health(name=name, ok=False, detail=f"{self._name()} is not here yet", fix="chinwag model pull")
        state = "running" if self._server and self._server.alive else "loaded at the first question"
        return Health(name=name, ok=True, detail=f"{self._name()}, {state}")

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._server.process.pid if self._server and self._server.alive else None

    async def close(self) -> None:
        """End the child, and a download or load that is going on."""
        if self._starting and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._server:
            await self._server.close()
            self._server = None

    # --- answering ------------------------------------------------------------------------------

    async def _answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._attempt(request)) as pieces:
            async for piece in pieces:
                yield piece
                if isinstance(piece, Finished):
                    return
        LOG.warning("the embedded model's process died before the first word; asking the new one")
        async with aclosing(self._ready()) as notes:
            async for note in notes:
                yield note
        async with aclosing(self._attempt(request, last=True)) as pieces:
            async for piece in pieces:
                yield piece

    async def _attempt(self, request: ModelRequest, *, last: bool = False) -> AsyncGenerator[Piece, None]:
        """One try. Ends without a piece when the process died before the first one and it is not the last try."""
        server, begun = self._server, False
        if server is None:  # somebody else noticed its death, and the new one is not there yet
            return
        try:
            async with aclosing(server.client.stream(request)) as pieces:
                async for piece in pieces:
                    begun = True
                    yield piece
        except (ModelBroke, ModelUnreachable) as error:
            if not await server.process.ended(timeout_s=2):
                raise
            if begun or last:
                raise ModelBroke(f"The embedded model stopped ({server.process.why()}). Try again.") from error

    # --- starting -------------------------------------------------------------------------------

    async def _ready(self) -> AsyncGenerator[Waiting, None]:
        """Pass when the process runs; start it if need be, and tell how far that is."""
        if self._server and self._server.alive:
            return
        starting, shown = self._begin(), None
        while not starting.done():
            if (state := self._state) != shown:
                shown = state
                yield _waiting(state)
            await asyncio.wait([starting], timeout=_TICK_S)
        starting.result()

    def _begin(self) -> "asyncio.Task[_Server]":
        """The start that is under way, or a new one; it goes on when the one who asked goes away."""
        if self._starting is None or self._starting.done():
            self._state = Progress(stage="Starting the model")
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(_retrieve)
        return self._starting

    async def _start(self) -> "_Server":
        if self._server:
            await self._server.close()
            self._server = None
        check_processor()
        path = await weights.obtain(self._options.model, folder=self._folder, progress=self._note)
        self._note(Progress(stage="Loading the model"))
        load = Load(path=path, name=self._name(), places=self._places, context_tokens=self._window)
        self._server = await _Server.start(load, self._options)
        return self._server

    def _note(self, progress: Progress) -> None:
        self._state = progress

    def _name(self) -> str:
        chosen = weights.wanted(self._options.model)
        return chosen.name if isinstance(chosen, Weights) else chosen.stem


class _Server:
    """The process and the client that speaks to it: opened and closed together."""

    def __init__(self, process: LlamaProcess, client: OpenAIBackend, stack: contextlib.AsyncExitStack) -> None:
        self.process, self.client, self._stack = process, client, stack

    @classmethod
    async def start(cls, load: Load, options: BackendOptions) -> "_Server":
        async with contextlib.AsyncExitStack() as stack:
            process = await LlamaProcess.start(load)
            stack.push_async_callback(process.stop)
            target = replace(
                options, base_url=process.url, api_key=process.key, model=load.name, timeout_s=_SILENCE_S, extra={}
            )
            client = await stack.enter_async_context(open_client(target))
            await client.limits()  # here it learns that this server counts tokens itself
            return cls(process, client, stack.pop_all())

    @property
    def alive(self) -> bool:
        return self.process.alive

    async def close(self) -> None:
        await self._stack.aclose()


class Line:
    """First come, first served, for so many places at once; whoever waits learns how many are ahead."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._people: list[object] = []
        self._moved = asyncio.Event()

    async def wait(self, stack: contextlib.AsyncExitStack) -> AsyncGenerator[Waiting, None]:
        """Pass when there is a place; it is given back when `stack` closes."""
        person = object()
        self._people.append(person)
        stack.callback(self._leave, person)
        while (ahead := self._people.index(person) - self._places) >= 0:
            moved = self._moved  # taken before the note is handed out: the line may move meanwhile
            turn = f"{ahead} before you" if ahead else "you are next"
            yield Waiting(note=f"Others are being answered; {turn}")
            await moved.wait()

    def _leave(self, person: object) -> None:
        self._people.remove(person)
        self._moved.set()
        self._moved = asyncio.Event()


def check_processor(cpuinfo: str | None = None, machine: str | None = None) -> None:
    """Raises `WeightsError` on an x86 processor without AVX2, where the library would die of an illegal instruction."""
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64"):
        return
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            return
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "flags: avx2")
    if "avx2" not in flags.split():
        raise WeightsError("This processor lacks AVX2, which the embedded model needs. Use a model server instead.")


def _waiting(progress: Progress) -> Waiting:
    if not progress.total:
        return Waiting(note=progress.stage)
    return Waiting(note=f"{progress.stage} ({progress.total / 1e9:.1f} GB, once)", done=progress.done / progress.total)


def _retrieve(task: "asyncio.Task[_Server]") -> None:
    """A start that failed is told to those who wait for it; when nobody does any more, that is no fault of ours."""
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, ModelError):
        LOG.error("the embedded model's start failed", exc_info=error)
