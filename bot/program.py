"""The commands of `chinwag`. Each imports what it needs when it runs.

Exit codes: 0 done; 1 no answer, or a check failed; 2 wrong use or settings; 3 the data folder cannot be used;
4 a document cannot be learned; 5 the model is not there; 130 interrupted.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bot import VERSION, folder, log
from bot.config import Settings, load
from bot.errors import (
    ChinwagError,
    CommandError,
    DataFolderError,
    KnowledgeError,
    MissingExtra,
    ModelError,
    SettingsError,
)

if TYPE_CHECKING:
    from bot.messages import Answer, Problem, Progress
    from bot.wiring import Core

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
knowledge_app = typer.Typer(no_args_is_help=True, help="What has been learned.", rich_markup_mode=None)
memory_app = typer.Typer(no_args_is_help=True, help="What is remembered.", rich_markup_mode=None)
model_app = typer.Typer(no_args_is_help=True, help="The embedded model's file.", rich_markup_mode=None)
app.add_typer(knowledge_app, name="knowledge")
app.add_typer(memory_app, name="memory")
app.add_typer(model_app, name="model")

Backend = Annotated[str, typer.Option("--backend", help="Answer with this backend instead of the one that is set.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Channel = Annotated[str, typer.Option("--channel", help="Which conversation of this terminal.")]


def run() -> int:
    """Run the command line; the exit code. No traceback reaches the terminal: it goes to the log."""
    log.silence()
    try:
        code = app(standalone_mode=False)
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except ChinwagError as error:
        return _failed(error)
    except Exception as error:  # noqa: BLE001 - the supervisor's guard: the person gets a line, the log gets the traceback
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own usage errors
            error.show()
            return int(error.exit_code)
        reference = log.reference(os.urandom(8).hex())
        log.get("program").exception("crashed", reference=reference)
        _say(f"! Something went wrong inside Chinwag (reference {reference} in chinwag.log of the data folder).")
        return 1
    return code if isinstance(code, int) else 0


def _failed(error: ChinwagError) -> int:
    _say(f"! {error}")
    log.get("program").warning("failed", exc_info=error)
    codes = (
        (SettingsError, 2),
        (MissingExtra, 2),
        (CommandError, 2),
        (DataFolderError, 3),
        (KnowledgeError, 4),
        (ModelError, 5),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), 1)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Chinwag: an assistant with memory and knowledge that you run yourself."""
    if version:
        _print(f"chinwag {VERSION}")
        raise typer.Exit


# --- conversation


@app.command()
def chat(
    backend: Backend = "",
    channel: Channel = "main",
) -> None:
    """Talk in the terminal. Ctrl-C stops an answer, Ctrl-D leaves, Esc Enter begins a new line."""
    _await(_chat(backend, channel))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    as_json: AsJson = False,
    backend: Backend = "",
) -> None:
    """Ask one question; nothing of earlier ones is remembered."""
    _await(_ask(question, as_json=as_json, backend=backend))


async def _chat(backend: str, channel: str) -> None:
    from adapters.console import ConsoleAdapter, place
    from bot.wiring import Chinwag

    settings = _settings()
    with folder.owned(settings.data_dir, by="chat"):
        async with _core(settings, backend) as core:
            greeting = await _greeting(core, channel)
            history = settings.data_dir / "console_history"
            adapter = ConsoleAdapter(where=place(channel), history=history, greeting=greeting)
            whole = Chinwag(core, {adapter.platform: adapter})
            async with adapter, whole.running(executor_id="console", recover=True):
                await adapter.run(whole)
    if adapter.failed:
        raise typer.Exit(1)


async def _greeting(core: "Core", channel: str) -> str:
    from adapters.console import audience_of, me, place

    where = place(channel)
    conversation = await core.store.conversation(where)
    messages = len(conversation.messages) + sum(block.messages for block in conversation.summaries)
    sources = await core.store.count_sources(audience_of(where, me()).scopes)
    return (
        f"Chinwag {VERSION}. {messages} messages remembered, {sources} sources learned. "
        "/help shows what you can do; Ctrl-D leaves."
    )


async def _ask(question: str, *, as_json: bool, backend: str) -> None:
    from adapters.console import AskAdapter
    from bot.wiring import Chinwag

    settings = _settings()
    with folder.owned(settings.data_dir, by="ask"):
        async with _core(settings, backend) as core:
            adapter = AskAdapter(question)
            whole = Chinwag(core, {adapter.platform: adapter})
            async with adapter, whole.running(executor_id="ask", recover=False):
                await adapter.run(whole)
    if as_json:
        _print(json.dumps(ask_result(adapter.answer, adapter.problem), ensure_ascii=False))
    elif adapter.answer is not None:
        _print(adapter.answer.text)
        for given in adapter.answer.cited:
            page = f", page {given.passage.page}" if given.passage.page else ""
            _print(f"[{given.n}] {given.passage.title}{page}")
    if adapter.problem is not None and not as_json:
        _say(f"! {adapter.problem.message} (reference {adapter.problem.reference})")
    if adapter.answer is None:
        raise typer.Exit(1)


def ask_result(answer: "Answer | None", problem: "Problem | None") -> dict[str, Any]:
    """What `chinwag ask --json` prints: answer, passages, usage, timings_ms, model, reference, notes, error."""
    passages = [
        {
            "n": given.n,
            "source": given.passage.source,
            "title": given.passage.title,
            "page": given.passage.page,
            "text": given.passage.text,
            "score": given.passage.score,
            "cited": given.cited,
        }
        for given in (answer.passages if answer else ())
    ]
    ended = answer or problem
    return {
        "answer": answer.text if answer else None,
        "passages": passages,
        "usage": asdict(answer.usage) if answer and answer.usage else None,
        "timings_ms": dict(answer.timings_ms) if answer else {},
        "model": answer.model if answer else "",
        "reference": ended.reference if ended else "",
        "notes": list(answer.notes) if answer else [],
        "ending": answer.ending if answer else "failed",
        "error": problem.message if problem else None,
    }


# --- knowledge


@app.command()
def learn(
    sources: Annotated[list[str], typer.Argument(help="Files and addresses.", metavar="PATH|URL...")],
    scope: Annotated[
        Literal["private", "channel", "workspace"],
        typer.Option(help="Who may read it: you, this channel, everybody here."),
    ] = "workspace",
) -> None:
    """Teach it documents: text, Markdown, HTML, PDF, web pages."""
    _await(_learn(sources, scope))


async def _learn(sources: list[str], kind: Literal["private", "channel", "workspace"]) -> None:
    from adapters.console import ConsoleReply, Screen, event_id, me, place
    from bot.commands import learn as learn_one
    from bot.commands import scope_of
    from bot.messages import Invocation, NewSource

    invocation = Invocation(event_id=event_id(), place=place(), author=me(), name="learn")
    failed: ChinwagError | None = None
    async with _knowledge("learn") as knowledge:
        for uri in sources:
            reply = ConsoleReply(Screen(sys.stderr, live=sys.stderr.isatty()))
            try:
                text = await learn_one(knowledge, NewSource(uri=uri), scope_of(kind, invocation), me().id, reply)
            except KnowledgeError as error:
                failed = error
                text = f"! {error}"
            await reply.end()
            (_say if text.startswith("!") else _print)(text)
    if failed is not None:
        raise typer.Exit(4)


@knowledge_app.command("list")
def knowledge_list(as_json: AsJson = False) -> None:
    """The learned sources."""
    _await(_knowledge_list(as_json=as_json))


async def _knowledge_list(*, as_json: bool) -> None:
    from adapters.console import audience_of, me, place
    from bot.commands import source_list

    async with _knowledge("knowledge list") as knowledge:
        found = await knowledge.sources(audience_of(place(), me()))
    if as_json:
        rows = [{**asdict(s), "scope": str(s.scope), "learned_at": s.learned_at.isoformat()} for s in found]
        _print(json.dumps(rows, ensure_ascii=False))
    else:
        _print(source_list(found))


@knowledge_app.command("show")
def knowledge_show(reference: Annotated[str, typer.Argument(help="Id, title or address.")]) -> None:
    """All passages of a source."""
    _await(_knowledge_command(f"show {reference!r}"))


@knowledge_app.command("remove")
def knowledge_remove(reference: Annotated[str, typer.Argument(help="Id, title or address.")]) -> None:
    """Remove a source, and count what is left of it in the index."""
    _await(_knowledge_command(f"remove {reference!r}"))


async def _knowledge_command(arguments: str) -> None:
    await _core_command("knowledge", arguments, "main")


# --- memory


@memory_app.command("show")
def memory_show(channel: Channel = "main") -> None:
    """What is remembered of the conversation in this terminal."""
    _await(_core_command("memory", "show", channel))


@memory_app.command("forget")
def memory_forget(
    channel: Channel = "main",
    everything: Annotated[bool, typer.Option("--all", help="The whole conversation, not only what you said.")] = False,
) -> None:
    """Erase what you said in this terminal, and the answers to it."""
    _await(_core_command("forget", "all" if everything else "me", channel))


async def _core_command(name: str, arguments: str, channel: str) -> None:
    """Carry out a command of the core as if it were given in the chat."""
    from adapters.console import ConsoleAdapter, ConsoleReply, Screen, event_id, me, place
    from bot.messages import Invocation
    from bot.wiring import Chinwag

    settings = _settings()
    screen = Screen(sys.stdout, live=False)
    with folder.owned(settings.data_dir, by=name):
        async with _core(settings, "echo") as core:  # none of these asks a model, so none need be installed
            adapter = ConsoleAdapter(where=place(channel))
            whole = Chinwag(core, {adapter.platform: adapter})
            invocation = Invocation(
                event_id=event_id(), place=place(channel), author=me(), name=name, arguments=arguments
            )
            await whole.command(invocation, ConsoleReply(screen))
    if screen.failed:
        raise typer.Exit(4 if name == "knowledge" else 1)


# --- around it


@app.command()
def stack() -> None:
    """The parts that answer, and what each is made of."""
    _await(_stack())


async def _stack() -> None:
    from bot.wiring import stack as describe

    settings = _settings()
    async with _core(settings, "") as core:
        _print(await describe(core, ["console"]))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check every part; each line is ok or the exact fix."""
    _await(_doctor(as_json=as_json))


async def _doctor(*, as_json: bool) -> None:
    from bot.commands import health_lines
    from bot.wiring import checks

    settings = _settings()
    found = await checks(settings)
    _print(json.dumps([asdict(check) for check in found], ensure_ascii=False) if as_json else health_lines(found))
    if not all(check.ok for check in found):
        raise typer.Exit(1)


@model_app.command("pull")
def model_pull(
    name: Annotated[str, typer.Argument(help="Empty for the default, small, or the path of a .gguf file.")] = "",
    small: Annotated[bool, typer.Option("--small", help="The 0.5B model: half the memory, cites badly.")] = False,
) -> None:
    """Get the embedded model's file, checked against its publisher's sha256."""
    _await(_model_pull("small" if small else name))


async def _model_pull(name: str) -> None:
    from backends.weights import cache_folder, obtain

    settings = _settings()
    with _bar("Model") as show:
        path = await obtain(name or settings.model, folder=cache_folder(settings.cache_dir), progress=show)
    _print(f"The model is at {path}.")


@contextlib.contextmanager
def _bar(title: str) -> "Iterator[Any]":
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def show(progress: "Progress") -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield show


def _settings() -> Settings:
    settings = load()
    folder.prepare(settings.data_dir)
    log.configure(settings.data_dir, level=settings.log_level)
    return settings


@contextlib.asynccontextmanager
async def _core(settings: Settings, backend: str) -> AsyncIterator["Core"]:
    from bot.wiring import open_core

    async with open_core(settings, backend=backend) as core:
        yield core


@contextlib.asynccontextmanager
async def _knowledge(by: str) -> AsyncIterator[Any]:
    from bot.store import SqlStore, sqlite_url
    from bot.wiring import open_knowledge

    settings = _settings()
    with folder.owned(settings.data_dir, by=by):
        url = settings.database_url or sqlite_url(settings.data_dir / "chinwag.db")
        async with SqlStore.open(url) as store, open_knowledge(settings, store) as knowledge:
            if knowledge is None:
                raise SettingsError("The knowledge is off, or its packages are missing. Run make setup.")
            yield knowledge


def _await(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)
