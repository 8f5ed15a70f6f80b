"""The embedded model: llama.cpp's real server with a model of half a megabyte; once with real weights, if here."""

import asyncio
import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backends import weights
from backends.embedded import EmbeddedBackend, Line, check_processor, open_embedded
from backends.llama_process import LlamaProcess, Load
from bot.errors import MissingExtra, ModelBroke, WeightsError
from bot.messages import ChatMessage, Finished, ModelRequest, Piece, Text, Usage, Waiting
from bot.ports import BackendOptions
from tests.standins import tiny_gguf

pytest.importorskip("xllamacpp", reason="the embedded extra is not installed")

LONG = 3500


def options(model: str | Path, **more: Any) -> BackendOptions:
    return BackendOptions(name="embedded", data_dir=Path(), model=str(model), **more)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf")


@pytest.fixture
async def backend(tiny: Path) -> AsyncIterator[EmbeddedBackend]:
    async with open_embedded(options(tiny)) as backend:
        yield backend


def asking(text: str = "Hello", *, max_tokens: int = 8, system: str = "Be brief.") -> ModelRequest:
    messages = (ChatMessage(role="system", content=system), ChatMessage(role="user", content=text))
    return ModelRequest(messages=messages, max_tokens=max_tokens, temperature=0.0)


async def collect(backend: EmbeddedBackend, request: ModelRequest, into: list[Piece] | None = None) -> list[Piece]:
    pieces: list[Piece] = [] if into is None else into
    async for piece in backend.stream(request):
        pieces.append(piece)  # noqa: PERF401 - what came before an error counts
    return pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def is_there(pid: int) -> bool:
    """Does that process live? One that is dead and not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(backend: EmbeddedBackend) -> int:
    assert backend.pid is not None
    return backend.pid


async def until(what: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 - the state of another process sends no event
            await asyncio.sleep(0.02)


async def busy_slots(backend: EmbeddedBackend) -> int:
    assert backend._server
    process = backend._server.process
    headers = {"Authorization": f"Bearer {process.key}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{process.url}/slots") as reply:
        return sum(slot["is_processing"] for slot in await reply.json())


# --- life of the child --------------------------------------------------------------------------


async def test_nothing_is_loaded_before_the_first_question(backend: EmbeddedBackend) -> None:
    """Opening, limits, counting and health start no process; the first question does, and says that it does."""
    await backend.limits()
    await backend.count_tokens(asking())
    assert (await backend.health()).ok
    assert not children()

    pieces = await collect(backend, asking())

    assert isinstance(pieces[0], Waiting)
    assert children() == [pid_of(backend)]
    assert not [piece for piece in await collect(backend, asking()) if isinstance(piece, Waiting)]


async def test_closing_ends_the_child(tiny: Path) -> None:
    """No process is left behind."""
    async with open_embedded(options(tiny)) as backend:
        await collect(backend, asking())
        pid = backend.pid
        assert pid
        assert is_there(pid)

    assert not is_there(pid)


async def test_closing_while_loading_ends_the_child(tiny: Path) -> None:
    """A bot that stops in the middle of the first start leaves nothing behind."""
    async with open_embedded(options(tiny)) as backend:
        task = asyncio.create_task(collect(backend, asking()))
        await until(lambda: bool(children()))
        pids = children()

    assert not any(map(is_there, pids))
    await asyncio.wait([task])
    assert task.cancelled() or task.exception()


def children() -> list[int]:
    """The model processes that this one started; other tests have children of their own."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if b"llama_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_the_child_dies_with_a_killed_bot(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL to the bot, which can clean up nothing, still ends the model's process."""
    script = tmp_path / "to_be_killed.py"
    script.write_text(
        textwrap.dedent(f"""
        import asyncio
        from pathlib import Path
        from backends.embedded import open_embedded
        from bot.messages import ChatMessage, ModelRequest
        from bot.ports import BackendOptions

        async def main():
            options = BackendOptions(name="embedded", data_dir=Path(), model={str(tiny)!r})
            async with open_embedded(options) as backend:
                ask = ModelRequest(messages=(ChatMessage(role="user", content="x"),), max_tokens=4)
                async for _ in backend.stream(ask): pass
                print(backend.pid, flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
        """)
    )
    root = str(Path(__file__).parents[2])
    bot = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    assert bot.stdout
    child = int(await asyncio.wait_for(bot.stdout.readline(), 30))
    assert is_there(child)

    bot.kill()
    await bot.wait()

    await until(lambda: not is_there(child))


async def test_a_dead_child_is_replaced(backend: EmbeddedBackend) -> None:
    """Killed while nobody was asking: the next question starts a new one and is answered."""
    before = await collect(backend, asking())
    first = backend.pid
    assert first
    os.kill(first, signal.SIGKILL)

    after = await collect(backend, asking())

    assert text_of(after) == text_of(before)
    assert backend.pid != first


async def test_death_before_the_first_word_is_made_good(backend: EmbeddedBackend) -> None:
    """A question that had no word of an answer yet is asked again of the new process."""
    await collect(backend, asking())
    pid = backend.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    question = asyncio.create_task(collect(backend, asking()))
    await asyncio.sleep(0.1)  # it is on its way to a process that does not move
    os.kill(pid, signal.SIGKILL)

    pieces = await asyncio.wait_for(question, 20)

    assert text_of(pieces)
    assert isinstance(pieces[-1], Finished)
    assert backend.pid != pid


async def test_death_in_mid_answer_is_told(backend: EmbeddedBackend) -> None:
    """After some text the stream ends in an error that says why; nothing is said twice."""
    pieces: list[Piece] = []
    question = asyncio.create_task(collect(backend, asking(max_tokens=LONG), pieces))
    await until(lambda: bool(text_of(pieces)))
    pid = backend.pid
    assert pid
    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ModelBroke, match="memory"):
        await asyncio.wait_for(question, 20)
    assert text_of(await collect(backend, asking()))


# --- stopping and queueing ----------------------------------------------------------------------


async def test_leaving_early_frees_the_model(backend: EmbeddedBackend) -> None:
    """When the reader goes, llama.cpp stops generating: the slot is idle long before the answer would have ended."""
    async with aclosing(backend.stream(asking(max_tokens=LONG))) as pieces:
        async for piece in pieces:
            if isinstance(piece, Text):
                assert await busy_slots(backend) == 1
                break
    left = time.monotonic()

    while await busy_slots(backend):
        assert time.monotonic() - left < 2
        await asyncio.sleep(0.02)


async def test_the_one_who_must_wait_is_told(tiny: Path) -> None:
    """With one place, the second is next and the third learns that one is before; both are answered in order."""
    async with open_embedded(options(tiny, extra={"places": 1})) as backend:
        await collect(backend, asking())
        answers = await asyncio.gather(*(collect(backend, asking(str(n), max_tokens=40)) for n in range(3)))

    notes = [[piece.note for piece in pieces if isinstance(piece, Waiting)] for pieces in answers]
    assert notes[0] == []
    assert [note.rpartition("; ")[2] for note in notes[1]] == ["you are next"]
    assert [note.rpartition("; ")[2] for note in notes[2]] == ["1 before you", "you are next"]
    assert all(text_of(pieces) for pieces in answers)


async def test_somebody_who_gives_up_waiting_holds_up_nobody() -> None:
    """A place in the line that was left closes up."""
    line = Line(1)
    first, second, third = AsyncExitStack(), AsyncExitStack(), AsyncExitStack()
    assert [note async for note in line.wait(first)] == []
    waiting = line.wait(second)
    assert "next" in (await anext(waiting)).note
    behind = line.wait(third)
    assert "1 before" in (await anext(behind)).note

    await second.aclose()
    assert "next" in (await anext(behind)).note
    await first.aclose()

    assert [note async for note in behind] == []


async def test_a_second_turn_finds_its_prompt_again(backend: EmbeddedBackend) -> None:
    """Two conversations in turn: each second question pays only for its own words."""
    for who in ("Ann ", "Bob "):
        await collect(backend, asking("First", system=who * 100))
    for who in ("Ann ", "Bob "):
        pieces = await collect(backend, asking("Second", system=who * 100))
        (usage,) = [piece for piece in pieces if isinstance(piece, Usage)]
        assert usage.cached_tokens > 0.9 * usage.prompt_tokens


async def test_tokens_are_counted_by_the_model(backend: EmbeddedBackend) -> None:
    """Once it is loaded, the count before equals the usage after."""
    await collect(backend, asking())
    counted = await backend.count_tokens(asking("Grüße, 世界"))
    pieces = await collect(backend, asking("Grüße, 世界"))
    (usage,) = [piece for piece in pieces if isinstance(piece, Usage)]

    assert counted == usage.prompt_tokens


# --- what cannot be loaded ----------------------------------------------------------------------


async def test_a_file_that_will_not_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line with what to do for the person, the library's own words for the log."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(1000))
    async with open_embedded(options(broken)) as backend:
        with caplog.at_level(logging.ERROR), pytest.raises(WeightsError) as caught:
            await collect(backend, asking())

    assert "broken.gguf could not be loaded" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "failed to load model" in caplog.text


async def test_a_child_killed_while_loading_means_memory(tmp_path: Path) -> None:
    """What the kernel does when memory runs out becomes advice."""
    never = tmp_path / "never.gguf"
    os.mkfifo(never)  # reading it waits for ever
    known = set(children())
    start = asyncio.create_task(LlamaProcess.start(Load(path=never, name="n", places=1, context_tokens=512)))
    await until(lambda: bool(set(children()) - known))
    (pid,) = set(children()) - known
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGKILL)

    with pytest.raises(WeightsError, match=r"memory.*CHINWAG_MODEL=small"):
        await asyncio.wait_for(start, 10)


async def test_a_failed_start_is_tried_again(tmp_path: Path) -> None:
    """Once the file is mended, the next question is answered."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    async with open_embedded(options(path)) as backend:
        with pytest.raises(WeightsError):
            await collect(backend, asking())
        tiny_gguf.write(path)
        assert text_of(await collect(backend, asking()))


def test_a_processor_without_avx2_is_told() -> None:
    """Instead of a process that dies of an illegal instruction; other architectures have no such flag."""
    check_processor("flags\t\t: fpu sse2 avx avx2 fma", "x86_64")
    check_processor("Features : fp asimd", "aarch64")
    with pytest.raises(WeightsError, match="AVX2"):
        check_processor("flags\t\t: fpu sse2 avx", "x86_64")


async def test_a_missing_extra_is_an_instruction(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """Without the library, opening says what to install."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match=r"chinwag\[embedded\]"):
        async with open_embedded(options(tiny)):
            pass


async def test_health_names_the_way_to_the_weights(tmp_path: Path) -> None:
    """Without weights it is not well, and the command that brings them is told."""
    async with open_embedded(options("small", extra={"cache_dir": tmp_path})) as backend:
        health = await backend.health()
    assert not health.ok
    assert health.fix == "chinwag model pull"
    async with open_embedded(options("gpt-4")) as backend:
        assert "CHINWAG_MODEL" in (await backend.health()).detail


# --- the real weights ---------------------------------------------------------------------------


def real_weights() -> str | None:
    """`CHINWAG_TEST_WEIGHTS`, or what this user's cache holds."""
    given = os.environ.get("CHINWAG_TEST_WEIGHTS")
    names = [given] if given else ["small", ""]
    return next((name for name in names if weights.find(name, weights.cache_folder())), None)


@pytest.mark.slow
async def test_real_weights_answer_and_remember_their_prompt() -> None:
    """A fact is known, and a second turn reads only what is new."""
    model = real_weights()
    if model is None:
        pytest.skip("no weights in the cache; fetch them with: chinwag model pull")
    rules = "You are a kind friend. " + "Answer in one short sentence. " * 20
    async with open_embedded(options(model)) as backend:
        first = await collect(backend, asking("What is the capital of France?", max_tokens=16, system=rules))
        second = await collect(backend, asking("What is the capital of Italy?", max_tokens=16, system=rules))

    (usage,) = [piece for piece in second if isinstance(piece, Usage)]
    assert "Paris" in text_of(first)
    assert "Rome" in text_of(second)
    assert usage.cached_tokens > 0.8 * usage.prompt_tokens
