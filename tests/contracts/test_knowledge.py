"""What every `KnowledgeBase` promises, run on the one in memory and on the embedded Qdrant alike."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bot.errors import SourceEmpty, SourceError, SourceNotFound, SourceTypeUnknown
from bot.messages import NewSource, Progress
from bot.ports import KnowledgeBase, KnowledgeOptions
from knowledge import KNOWLEDGE
from knowledge.memory import MemoryRegistry
from tests.standins.library import Shared, fresh_scope, readers, shared_library, text, unseen

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

LLAMAS = "# Llamas\n\nLlamas are kept for their wool and carry loads in the Andes mountains.\n"
BREAD = "# Bread\n\nSourdough bread rises overnight in a cool kitchen.\n"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared() -> AsyncIterator[Shared]:
    async with shared_library() as library:
        yield library


@pytest_asyncio.fixture(params=["memory", "qdrant"], loop_scope="session")
async def knowledge(request: pytest.FixtureRequest, tmp_path: Path, shared: Shared) -> AsyncIterator[KnowledgeBase]:
    if request.param == "qdrant":
        yield shared.library
    else:
        async with KNOWLEDGE["memory"](KnowledgeOptions(data_dir=tmp_path), MemoryRegistry()) as base:
            yield base


async def test_what_was_learned_is_found_with_its_source(knowledge: KnowledgeBase) -> None:
    """A learned document answers a question about it, and the passage names where it stands."""
    scope = fresh_scope()
    learned = await knowledge.add(text(LLAMAS, "llamas.md"), scope, added_by="ann", progress=unseen)

    found = await knowledge.search("What are llamas kept for in the Andes?", readers(scope), 3)

    assert found.sources_searched == 1
    assert "wool" in found.passages[0].text
    assert found.passages[0].source_id == learned.source.id
    assert found.passages[0].source == "llamas.md"
    assert found.passages[0].heading == "Llamas"
    assert learned.new
    assert not learned.replaced
    assert learned.source.added_by == "ann"


async def test_nothing_is_found_where_nothing_fits(knowledge: KnowledgeBase) -> None:
    """A question about something else brings no passages, but says that sources were searched."""
    scope = fresh_scope()
    await knowledge.add(text(LLAMAS), scope, added_by="", progress=unseen)

    found = await knowledge.search("Who won the chess championship of 1972?", readers(scope), 3)

    assert found.passages == ()
    assert found.sources_searched == 1


async def test_an_audience_without_sources_finds_nothing(knowledge: KnowledgeBase) -> None:
    """Where nothing may be read, a search says that there is nothing to ask."""
    await knowledge.add(text(LLAMAS), fresh_scope(), added_by="", progress=unseen)

    found = await knowledge.search("What are llamas kept for?", readers(fresh_scope()), 3)

    assert (found.passages, found.sources_searched) == ((), 0)


async def test_learning_the_same_bytes_twice_changes_nothing(knowledge: KnowledgeBase) -> None:
    """The second time, even under another name, the first source is given back."""
    scope = fresh_scope()
    first = await knowledge.add(text(LLAMAS, "a.md"), scope, added_by="ann", progress=unseen)

    again = await knowledge.add(text(LLAMAS, "a.md"), scope, added_by="ben", progress=unseen)
    renamed = await knowledge.add(text(LLAMAS, "b.md"), scope, added_by="ben", progress=unseen)

    assert (again.new, again.source) == (False, first.source)
    assert (renamed.new, renamed.source) == (False, first.source)
    assert len(await knowledge.show(first.source)) == first.source.chunks


async def test_the_same_bytes_in_another_scope_are_another_source(knowledge: KnowledgeBase) -> None:
    """Two channels learn the same file, and one forgets it: the other still knows it."""
    one, other = fresh_scope(), fresh_scope()
    first = await knowledge.add(text(LLAMAS), one, added_by="", progress=unseen)
    second = await knowledge.add(text(LLAMAS), other, added_by="", progress=unseen)

    await knowledge.remove(first.source)

    assert first.source.id != second.source.id
    assert (await knowledge.search("What are llamas kept for?", readers(other), 3)).passages
    assert await knowledge.sources(readers(one)) == ()


async def test_changed_bytes_replace_the_old_chunks(knowledge: KnowledgeBase) -> None:
    """Under the same name and id stands the new text only."""
    scope = fresh_scope()
    before = await knowledge.add(text(LLAMAS, "page.md"), scope, added_by="", progress=unseen)
    after = await knowledge.add(text(BREAD, "page.md"), scope, added_by="", progress=unseen)

    shown = "\n".join(passage.text for passage in await knowledge.show(after.source))

    assert after.replaced
    assert after.source.id == before.source.id
    assert "Sourdough" in shown
    assert "wool" not in shown
    assert await knowledge.sources(readers(scope)) == (after.source,)
    assert (await knowledge.search("What are llamas kept for in the Andes?", readers(scope), 3)).passages == ()


async def test_a_removal_proves_itself(knowledge: KnowledgeBase) -> None:
    """Removing says how many chunks there were and that none is left."""
    scope = fresh_scope()
    learned = await knowledge.add(text(LLAMAS), scope, added_by="", progress=unseen)

    removed = await knowledge.remove(learned.source)

    assert removed.chunks_before == learned.source.chunks > 0
    assert removed.chunks_after == 0
    assert await knowledge.show(learned.source) == ()
    assert await knowledge.sources(readers(scope)) == ()


async def test_sources_come_newest_first(knowledge: KnowledgeBase) -> None:
    """The list begins with what was learned last."""
    scope = fresh_scope()
    old = await knowledge.add(text(LLAMAS, "old.md"), scope, added_by="", progress=unseen)
    new = await knowledge.add(text(BREAD, "new.md"), scope, added_by="", progress=unseen)

    assert await knowledge.sources(readers(scope)) == (new.source, old.source)


async def test_a_source_is_found_by_id_beginning_of_it_title_or_name(knowledge: KnowledgeBase) -> None:
    """Whatever a person types, one source is meant; what is ambiguous, unknown or not theirs is refused."""
    scope = fresh_scope()
    llamas = (await knowledge.add(text(LLAMAS, "docs/llamas.md"), scope, added_by="", progress=unseen)).source
    await knowledge.add(text(BREAD, "docs/bread.md"), scope, added_by="", progress=unseen)

    for reference in (llamas.id, llamas.id[:6], "Llamas", "docs/llamas.md", "llamas.md", f" {llamas.id} "):
        assert await knowledge.find(reference, readers(scope)) == llamas
    for wrong in ("", "nothing", llamas.id + "0"):
        with pytest.raises(SourceNotFound):
            await knowledge.find(wrong, readers(scope))
    with pytest.raises(SourceNotFound):
        await knowledge.find(llamas.id, readers(fresh_scope()))


async def test_an_ambiguous_name_asks_for_the_id(knowledge: KnowledgeBase) -> None:
    """Two sources of one title are told apart by id, and the refusal says the ids."""
    scope = fresh_scope()
    one = (await knowledge.add(text("# Same\n\nfirst", "one.md"), scope, added_by="", progress=unseen)).source
    await knowledge.add(text("# Same\n\nsecond", "two.md"), scope, added_by="", progress=unseen)

    with pytest.raises(SourceNotFound, match=one.id):
        await knowledge.find("Same", readers(scope))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (NewSource(uri="empty.txt", content=b" \n"), SourceEmpty),
        (NewSource(uri="photo.png", content=b"\x89PNG\r\n\x1a\n" + bytes(range(200))), SourceTypeUnknown),
        (NewSource(uri="/nowhere/at/all.txt"), SourceNotFound),
    ],
)
async def test_what_cannot_be_learned_leaves_everything_as_it_was(
    knowledge: KnowledgeBase, source: NewSource, error: type[SourceError]
) -> None:
    """A bad source is refused in one line, and what was learned before stands."""
    scope = fresh_scope()
    learned = await knowledge.add(text(LLAMAS), scope, added_by="", progress=unseen)

    with pytest.raises(error) as raised:
        await knowledge.add(source, scope, added_by="", progress=unseen)

    assert "\n" not in str(raised.value)
    assert await knowledge.sources(readers(scope)) == (learned.source,)
    assert len(await knowledge.show(learned.source)) == learned.source.chunks


async def test_at_most_k_passages_come(knowledge: KnowledgeBase) -> None:
    """However much would fit, no more than asked for is given."""
    scope = fresh_scope()
    many = "\n\n".join(f"# Llama {number}\n\nLlama number {number} eats hay." for number in range(8))
    await knowledge.add(text(many), scope, added_by="", progress=unseen)

    assert len((await knowledge.search("Which llama eats hay?", readers(scope), 3)).passages) == 3
    assert (await knowledge.search("Which llama eats hay?", readers(scope), 0)).passages == ()


async def test_progress_is_told(knowledge: KnowledgeBase) -> None:
    """Somebody who waits is told the stages, from fetching on."""
    told: list[Progress] = []
    await knowledge.add(text(LLAMAS), fresh_scope(), added_by="", progress=told.append)

    assert told[0].stage == "fetch"
    assert "extract" in [progress.stage for progress in told]
    assert len(told) >= 3


async def test_health_has_a_line_for_the_index_and_one_for_the_encoder(knowledge: KnowledgeBase) -> None:
    """A healthy knowledge says so twice."""
    lines = await knowledge.health()

    assert [line.name for line in lines] == ["index", "encoder"]
    assert all(line.ok for line in lines)
