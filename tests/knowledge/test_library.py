"""Learning against the odds: failures at every step, a killed process, a page that changes. And the real leaflet."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from qdrant_client import AsyncQdrantClient, models

from bot.errors import EncoderChanged, KnowledgeUnavailable, SourceDamaged, SourceLocked, StorageFull
from bot.messages import Health, NewSource, Passage, Progress, Source
from bot.ports import KnowledgeOptions
from knowledge.extract import Extractor
from knowledge.host import Host
from knowledge.index import COLLECTION, Index
from knowledge.library import Library
from knowledge.memory import MemoryRegistry
from knowledge.sources import Reader
from tests.standins.documents import pdf
from tests.standins.faulty import faulty
from tests.standins.library import MEDICARE, Shared, fresh_scope, readers, shared_library, text, unseen
from tests.standins.web import site

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

WOOL = "Llamas are kept for their wool in the Andes."
LOADS = "Llamas are kept for carrying loads over mountain passes."
OLD = f"# Wool\n\n{WOOL}\n"
NEW = f"# Wool\n\n{LOADS}\n"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared() -> AsyncIterator[Shared]:
    async with shared_library() as library:
        yield library


class Full(MemoryRegistry):
    """A ledger without room for anything new."""

    full = True

    async def put_source(self, source: Source) -> None:
        if self.full:
            raise StorageFull("No space is left.")
        await super().put_source(source)


def library(shared: Shared, index: Index, registry: MemoryRegistry) -> Library:
    return Library(index, registry, Reader(KnowledgeOptions(data_dir=MEDICARE)), Extractor())


async def test_a_full_ledger_undoes_the_chunks(shared: Shared) -> None:
    """When the source cannot be noted, its chunks are gone from the index too, and the old ones stand."""
    scope, registry = fresh_scope(), Full()
    registry.full = False
    base = library(shared, shared.index, registry)
    old = (await base.add(text(OLD), scope, added_by="", progress=unseen)).source
    registry.full = True

    with pytest.raises(StorageFull):
        await base.add(text(NEW), scope, added_by="", progress=unseen)

    assert await base.sources(readers(scope)) == (old,)
    assert await shared.index.count(old.id) == old.chunks
    assert "wool" in (await base.show(old))[0].text


@pytest.mark.parametrize("step", ["/points?", "/points/payload", "/points/count"])
async def test_a_qdrant_that_goes_away_leaves_the_old_version(shared: Shared, step: str) -> None:
    """Whichever step of a replacement fails, the source is as it was, and a later attempt ends the work."""
    scope, registry, endpoint = fresh_scope(), MemoryRegistry(), await shared.host.endpoint()
    async with faulty(endpoint.url) as proxy:
        index = Index(shared.host, url=proxy.url, api_key=endpoint.token, call_limit_s=2)
        base = library(shared, index, registry)
        old = (await base.add(text(OLD), scope, added_by="", progress=unseen)).source
        proxy.only = step.rstrip("?")
        fails = [503] * 3 if step != "/points/count" else [0, *[503] * 3]
        proxy.faults = [fault for fault in fails if fault]

        with pytest.raises(KnowledgeUnavailable):
            await base.add(text(NEW), scope, added_by="", progress=unseen)

        assert await base.sources(readers(scope)) == (old,)
        proxy.faults = []
        assert [passage.text for passage in await base.show(old)] == [f"Wool\n{WOOL}"]
        assert await index.count(old.id, live=True) == old.chunks
        learned = await base.add(text(NEW), scope, added_by="", progress=unseen)
        assert learned.replaced
        assert await index.count(old.id) == learned.source.chunks
        await index.close()


async def test_a_cancelled_learning_leaves_nothing(shared: Shared) -> None:
    """Stopped in the middle, no chunk and no record remains."""
    scope = fresh_scope()
    reached = asyncio.Event()

    def stop_at_embed(progress: Progress) -> None:
        if progress.stage == "index":
            reached.set()

    task = asyncio.create_task(shared.library.add(text(OLD), scope, added_by="", progress=stop_at_embed))
    await reached.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shared.library.sources(readers(scope)) == ()
    learned = await shared.library.add(text(OLD), scope, added_by="", progress=unseen)
    assert await shared.index.count(learned.source.id) == learned.source.chunks


async def test_learning_goes_on_when_the_process_is_killed(shared: Shared) -> None:
    """The index's process dies amid learning: it is started anew and the document stands in the end, whole."""
    scope = fresh_scope()
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        if progress.stage == "embed" and progress.done and not killed and shared.host.pid:
            killed.append(shared.host.pid)
            os.kill(shared.host.pid, signal.SIGKILL)

    long = "\n\n".join(f"# Part {number}\n\nThe llama of part {number} eats hay." for number in range(20))
    learned = await shared.library.add(text(long), scope, added_by="", progress=kill_once)

    assert killed
    assert await shared.index.count(learned.source.id, live=True) == learned.source.chunks == 20


async def test_the_same_source_learned_twice_at_once_is_learned_once(shared: Shared) -> None:
    """Two people send the same file in the same moment: one source, one set of chunks."""
    scope = fresh_scope()

    results = await asyncio.gather(
        *(shared.library.add(text(OLD), scope, added_by=name, progress=unseen) for name in ("ann", "ben"))
    )

    assert sorted(learned.new for learned in results) == [False, True]
    assert await shared.index.count(results[0].source.id) == results[0].source.chunks


async def test_a_page_that_changed_is_replaced(shared: Shared) -> None:
    """Learning a URL again fetches it again: unchanged it costs nothing, changed it replaces."""
    scope = fresh_scope()
    async with site() as pages:
        url = pages.page("/llamas.md", OLD, content_type="text/markdown")
        first = await shared.library.add(NewSource(uri=url), scope, added_by="", progress=unseen)
        again = await shared.library.add(NewSource(uri=url), scope, added_by="", progress=unseen)
        pages.page("/llamas.md", NEW, content_type="text/markdown")
        changed = await shared.library.add(NewSource(uri=url), scope, added_by="", progress=unseen)

    assert (first.source.uri, again.new, changed.replaced) == (url, False, True)
    found = await shared.library.search("What are llamas kept for?", readers(scope), 3)
    assert [passage.text for passage in found.passages] == [f"Wool\n{LOADS}"]


@pytest.mark.parametrize(
    ("content", "error"), [(pdf("x", password="y"), SourceLocked), (pdf("x" * 500)[:200], SourceDamaged)]
)
async def test_a_bad_new_version_does_not_cost_the_old_one(
    shared: Shared, content: bytes, error: type[Exception]
) -> None:
    """A file that became locked or broken is refused, and what it said before is still known."""
    scope = fresh_scope()
    good = NewSource(uri="a.pdf", content=pdf("Llamas are kept for wool."))
    old = (await shared.library.add(good, scope, added_by="", progress=unseen)).source

    with pytest.raises(error):
        await shared.library.add(NewSource(uri="a.pdf", content=content), scope, added_by="", progress=unseen)

    assert await shared.library.sources(readers(scope)) == (old,)
    assert (await shared.library.search("What are llamas kept for?", readers(scope), 3)).passages[0].page == 1


async def test_an_audience_without_sources_starts_nothing(shared: Shared) -> None:
    """Where nothing was learned, a search touches neither index nor encoder."""
    index = Index(shared.host, url="http://127.0.0.1:9")

    found = await library(shared, index, MemoryRegistry()).search("anything", readers(fresh_scope()), 3)

    assert (found.passages, found.sources_searched) == ((), 0)


async def test_ill_health_names_the_fix(shared: Shared) -> None:
    """A dead index is one bad line with a fix; the encoder's line is about the encoder."""
    index = Index(shared.host, url="http://127.0.0.1:9")
    lines: tuple[Health, ...] = tuple(await library(shared, index, MemoryRegistry()).health())
    await index.close()

    assert [line.ok for line in lines] == [False, True]
    assert "CHINWAG_QDRANT_URL" in lines[0].detail
    assert lines[0].fix


async def test_another_encoders_knowledge_is_encoded_anew(tmp_path: Path, shared: Shared) -> None:
    """After a rebuild all is found by the present encoder, under the same ids, and the old collection is gone."""
    host, scope, registry = Host(tmp_path / "knowledge"), fresh_scope(), MemoryRegistry()
    index = _SharedEncoder(host, shared.index)
    base = library(shared, index, registry)
    source = (await base.add(text(OLD), scope, added_by="", progress=unseen)).source
    assert index._client
    await _pretend_older(index._client)
    index._ready = False
    with pytest.raises(EncoderChanged):
        await base.search("What are llamas kept for?", readers(scope), 3)
    told: list[Progress] = []

    assert await base.rebuild(told.append) == source.chunks

    assert told[-1] == Progress(stage="embed", done=source.chunks, total=source.chunks)
    assert WOOL in (await base.search("What are llamas kept for?", readers(scope), 3)).passages[0].text
    assert await base.rebuild(unseen) == 0
    await index.close()
    await host.close()


class _SharedEncoder(Index):
    """An index of its own that borrows the shared encoder, for loading one takes seconds."""

    def __init__(self, host: Host, lender: Index) -> None:
        super().__init__(host)
        self.encode = lender.encode  # type: ignore[method-assign]
        self.chunk = lender.chunk  # type: ignore[method-assign]


async def _pretend_older(client: AsyncQdrantClient) -> None:
    """Move the chunks to a collection with smaller vectors, as an older encoder would have made it."""
    sizes = {"dense": models.VectorParams(size=2, distance=models.Distance.COSINE)}
    await client.create_collection("chinwag-older", vectors_config=sizes)
    page, _ = await client.scroll(COLLECTION, limit=100)
    points = [models.PointStruct(id=record.id, vector={"dense": [1.0, 0.0]}, payload=record.payload) for record in page]
    await client.upsert("chinwag-older", points)
    await client.delete_collection(COLLECTION)


# --- the leaflet ---------------------------------------------------------------------------------------

NAMES = ("(QMB)", "(SLMB)", "(QI)", "(QDWI)")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def leaflet(shared: Shared) -> AsyncIterator["Leaflet"]:
    if not MEDICARE.exists():
        pytest.skip("the Medicare leaflet is not here")
    scope = fresh_scope()
    learned = await shared.library.add(NewSource(uri=str(MEDICARE)), scope, added_by="", progress=unseen)
    assert (learned.source.title, learned.source.pages) == ("Medicare Savings Programs", 6)
    yield Leaflet(shared.library, scope)


class Leaflet:
    """Questions to the leaflet on Medicare Savings Programs."""

    def __init__(self, base: Library, scope: object) -> None:
        self._base, self._audience = base, readers(scope)  # type: ignore[arg-type]

    async def ask(self, question: str) -> tuple[Passage, ...]:
        return (await self._base.search(question, self._audience, 6)).passages


@pytest.mark.parametrize(
    "question", ["Which four programs are there?", "list all programs", "Welche vier Programme gibt es?"]
)
async def test_all_four_programs_are_reached(leaflet: Leaflet, question: str) -> None:
    """Each program has a passage that says what it pays for, and all fit a small model's 400 tokens."""
    passages = await leaflet.ask(question)

    for name in NAMES:
        assert any(name in passage.heading and "Helps pay for" in passage.text for passage in passages)
    assert sum(len(passage.text) for passage in passages) < 1600


@pytest.mark.parametrize(
    ("question", "says", "page"),
    [
        ("What is the income limit for an individual in the QDWI program?", "$4,945", 4),
        ("What is the resource limit for a married couple in the QMB program?", "$13,630", 2),
        ("Wie hoch ist die Einkommensgrenze für Einzelpersonen im QDWI-Programm?", "$4,945", 4),
        ("QI program income limit married", "$2,239", 3),
        ("How do I apply?", "Contact your state to apply", 5),
        ("Do I have to apply every year?", "You must apply every year", 3),
        ("I am working and disabled, which program is for me?", "Have a disability", 4),
        ("Can a provider bill me?", "aren’t allowed to bill you", 2),
        ("What if my income is higher than the limit?", "even if your income", 1),
        ("What cards should I show when I get care?", "Show both your Medicare card", 2),
        ("Who runs these programs?", "run by your state", 5),
        ("Was bezahlt das QMB-Programm?", "Part A premiums; Part B premiums", 1),
    ],
)
async def test_the_right_passage_comes_first(leaflet: Leaflet, question: str, says: str, page: int) -> None:
    """A question of fact is answered by the first passage, which knows its page."""
    first = (await leaflet.ask(question))[0]

    assert says in first.text
    assert first.page == page


@pytest.mark.parametrize(
    "question",
    [
        "What is the weather on Mars?",
        "hello",
        "hi there",
        "tell me a joke",
        "what is my name?",
        "who are you?",
        "thanks!",
        "What are we doing tonight?",
        "my dog is sick, what should I do?",
        "What is the capital of France?",
        "Which four planets are closest to the sun?",
        "How many moons does Jupiter have?",
        "hallo, wie geht's?",
        "Wie ist das Wetter auf dem Mars?",
        "Summarise our conversation",
    ],
)
async def test_what_the_leaflet_does_not_say_is_declined(leaflet: Leaflet, question: str) -> None:
    """Small talk and other subjects bring no passages at all."""
    assert await leaflet.ask(question) == ()
