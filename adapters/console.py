"""The terminal: a conversation with history, streaming and a spinner; or plain text when piped."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from bot.errors import DataFolderError, SourceNotFound
from bot.messages import Answer, Attachment, Audience, Incoming, Invocation, Person, Place, Problem, Scope
from bot.ports import AdapterLimits, Inbox, Reply

PLATFORM = "console"
WORKSPACE = "local"
LIMITS = AdapterLimits(
    max_chars=1_000_000,
    edit_interval_s=0.03,
    markdown=False,
    rate_limited=False,
    local_files=True,
    default_scope="workspace",
)
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
NO_BREAK = "Nothing was kept, so nothing is lost."


def place(channel: str = "main", thread: str = "") -> Place:
    """A place in this terminal."""
    return Place(platform=PLATFORM, workspace=WORKSPACE, channel=channel, thread=thread)


def me() -> Person:
    """Whoever sits at this terminal."""
    return Person(id=f"user-{os.getuid() if hasattr(os, 'getuid') else 0}", name=os.environ.get("USER", "") or "You")


def event_id() -> str:
    """Unique, and sorted by time."""
    return f"console-{time.time_ns():020d}-{secrets.token_hex(3)}"


def audience_of(where: Place, person: Person) -> Audience:
    """One person reads along here: everything that this person may see."""
    scopes = (Scope.private(where, person), Scope.channel(where), Scope.workspace(where))
    return Audience(scopes=frozenset(map(str, scopes)))


class Screen:
    """Where replies are drawn. `live`: a terminal, with spinner and colour; else plain lines."""

    def __init__(self, out: TextIO, *, live: bool) -> None:
        self.out = out
        self.live = live
        self.failed = False

    def write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.live else text

    def clear_line(self) -> None:
        if self.live:
            self.write("\r\033[K")


class ConsoleReply:
    """One answer in the terminal: what was shown is never shown again, only what came since."""

    def __init__(self, screen: Screen, *, introduction: str = "", on_end: Callable[[], None] = lambda: None) -> None:
        self._screen = screen
        self._introduction = introduction
        self._on_end = on_end
        self._shown = ""
        self._note = ""
        self._spinner: asyncio.Task[None] | None = None

    async def status(self, note: str) -> None:
        """A spinner with the note beside it; nothing when piped."""
        self._introduce()
        if self._shown:
            return
        self._note = note
        if self._screen.live and self._spinner is None:
            self._spinner = asyncio.create_task(self._spin())

    async def write(self, text_so_far: str) -> None:
        """Append what is new."""
        await self._stop_spinner()
        self._introduce()
        self._screen.write(text_so_far[len(self._shown) :])
        self._shown = text_so_far

    async def finish(self, answer: Answer) -> None:
        """The rest of the text, then the sources that were cited, then the footer."""
        await self._stop_spinner()
        self._introduce()
        if answer.text.startswith(self._shown.rstrip()):
            self._screen.write(answer.text[len(self._shown) :])
        else:  # what is on the screen cannot be taken back
            self._screen.write(f"\n{answer.text}")
        broken = self._shown.endswith("\n") and self._shown.rstrip() == answer.text
        lines = [f"[{given.n}] {_title(given.passage.title, given.passage.page)}" for given in answer.cited]
        if answer.ending == "stopped":
            lines.append("(stopped)")
        lines += [f"({note})" for note in answer.notes if note != "stopped"]
        self._screen.write(("" if broken else "\n") + "".join(f"{self._screen.dim(line)}\n" for line in lines))
        self._on_end()

    async def fail(self, problem: Problem) -> None:
        """One line that says what to do."""
        await self._stop_spinner()
        self._introduce()
        self._screen.failed = True
        reference = f" (reference {problem.reference})" if problem.reference else ""
        self._screen.write(f"{chr(10) if self._shown else ''}! {problem.message}{reference}\n")
        self._on_end()

    async def end(self) -> None:
        """Draw nothing more."""
        await self._stop_spinner()

    def _introduce(self) -> None:
        if self._introduction:
            self._screen.write(f"{self._introduction}\n")
            self._introduction = ""

    async def _spin(self) -> None:
        began = time.monotonic()
        for turn in range(1_000_000):
            passed = time.monotonic() - began
            seconds = f" {passed:.0f} s" if passed >= 2 else ""
            self._screen.write(f"\r\033[K\033[2m{FRAMES[turn % len(FRAMES)]} {self._note}{seconds}\033[0m")
            await asyncio.sleep(0.1)

    async def _stop_spinner(self) -> None:
        if self._spinner is None:
            return
        self._spinner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._spinner
        self._spinner = None
        self._screen.clear_line()


class ConsoleAdapter:
    """`chinwag chat`. Reads from the terminal, or line by line from a pipe."""

    platform = PLATFORM
    limits = LIMITS

    def __init__(
        self,
        *,
        where: Place | None = None,
        history: Path | None = None,
        greeting: str = "",
        source: TextIO | None = None,
        out: TextIO | None = None,
    ) -> None:
        self._place = where or place()
        self._history = history
        self._greeting = greeting
        self._source = source or sys.stdin
        out = out or sys.stdout
        self._screen = Screen(out, live=self._source.isatty() and out.isatty())
        self._author = me()
        self._current = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @property
    def failed(self) -> bool:
        """Something that was asked got no answer."""
        return self._screen.failed

    async def run(self, inbox: Inbox) -> None:
        """Finish what an earlier run left, then talk until Ctrl-D or the end of the input."""
        if self._screen.live and self._greeting:
            self._screen.write(f"{self._greeting}\n")
        with self._interruptible(inbox):
            await inbox.settled()
            lines = self._typed() if self._screen.live else self._piped()
            async for text in lines:
                if text.startswith("/"):
                    if text.split()[0] in {"/exit", "/quit"}:
                        return
                    await self._command(inbox, text)
                elif text.strip():
                    await self._ask(inbox, text)

    async def open_reply(self, incoming: Incoming, *, replay: bool) -> Reply:
        """A reply on the screen; one of an earlier run is introduced by its question."""
        self._current = incoming.event_id
        asked = " ".join(incoming.text.split())[:200]
        return ConsoleReply(
            self._screen, introduction=f"(You asked before I was interrupted: {asked})" if replay else ""
        )

    async def audience(self, incoming: Incoming) -> Audience:
        """One person reads along here."""
        return audience_of(incoming.place, incoming.author)

    async def fetch(self, attachment: Attachment) -> bytes:
        """A file of this machine."""
        try:
            return await asyncio.to_thread(Path(attachment.url).read_bytes)
        except OSError as error:
            raise SourceNotFound(f"{attachment.url} cannot be read ({error.strerror}).") from error

    # --- one line of input

    async def _ask(self, inbox: Inbox, text: str) -> None:
        self._current = event_id()
        incoming = Incoming(
            event_id=self._current, place=self._place, author=self._author, text=text, sent_at=datetime.now(UTC)
        )
        try:
            await inbox.accept(incoming)
        except DataFolderError as error:
            self._screen.failed = True
            self._screen.write(f"! {error}\n")
            return
        await inbox.settled()

    async def _command(self, inbox: Inbox, text: str) -> None:
        name, _, arguments = text[1:].partition(" ")
        invocation = Invocation(
            event_id=event_id(), place=self._place, author=self._author, name=name, arguments=arguments.strip()
        )
        task = asyncio.create_task(inbox.command(invocation, ConsoleReply(self._screen)))
        self._command_task: asyncio.Task[None] | None = task
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            self._screen.clear_line()
            self._screen.write("(stopped)\n")
        finally:
            self._command_task = None

    _command_task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def _interruptible(self, inbox: Inbox) -> Any:
        """Ctrl-C stops the answer or the command that runs, and nothing else."""
        loop = asyncio.get_running_loop()
        stopping: set[asyncio.Task[bool]] = set()

        def interrupt() -> None:
            if self._command_task is not None:
                self._command_task.cancel()
                return
            task = asyncio.ensure_future(inbox.stop(self._current))
            stopping.add(task)
            task.add_done_callback(stopping.discard)

        try:
            loop.add_signal_handler(signal.SIGINT, interrupt)
        except (NotImplementedError, RuntimeError, ValueError):  # no signals here: another thread, another system
            yield
            return
        self._rearm = lambda: loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    _rearm: Callable[[], None] | None = None

    async def _piped(self) -> AsyncIterator[str]:
        while line := await asyncio.to_thread(self._source.readline):
            yield line.rstrip("\n")

    async def _typed(self) -> AsyncIterator[str]:
        session = self._session()
        while True:
            try:
                text = await session.prompt_async("> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            finally:
                if self._rearm is not None:  # the prompt took the signal and gave it back to nobody
                    self._rearm()
            if text.strip():
                yield text

    def _session(self) -> Any:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def _newline(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        history = FileHistory(str(self._history)) if self._history else InMemoryHistory()
        return PromptSession(history=history, key_bindings=keys, prompt_continuation="  ", enable_history_search=True)


class AskAdapter(ConsoleAdapter):
    """`chinwag ask`: one question, whose outcome is kept for the caller instead of drawn."""

    def __init__(self, question: str, *, progress: TextIO | None = None) -> None:
        super().__init__(where=place("ask", secrets.token_hex(6)), source=sys.stdin, out=progress or sys.stderr)
        self._screen = Screen(progress or sys.stderr, live=(progress or sys.stderr).isatty())
        self._question = question
        self.answer: Answer | None = None
        self.problem: Problem | None = None

    async def run(self, inbox: Inbox) -> None:
        """Ask, and return when the outcome is there."""
        with self._interruptible(inbox):
            await self._ask(inbox, self._question)

    async def open_reply(self, incoming: Incoming, *, replay: bool) -> Reply:
        """A reply that keeps its end."""
        del replay
        self._current = incoming.event_id
        return _KeptReply(self)

    @property
    def screen(self) -> Screen:
        """Where progress is drawn."""
        return self._screen


class _KeptReply(ConsoleReply):
    def __init__(self, adapter: AskAdapter) -> None:
        super().__init__(adapter.screen)
        self._adapter = adapter

    async def write(self, text_so_far: str) -> None:
        """Nothing is drawn before the end."""

    async def finish(self, answer: Answer) -> None:
        """Keep it."""
        await self._stop_spinner()
        self._adapter.answer = answer

    async def fail(self, problem: Problem) -> None:
        """Keep it."""
        await self._stop_spinner()
        self._adapter.problem = problem


def _title(title: str, page: int | None) -> str:
    return f"{title}, page {page}" if page else title
