"""The index through a Qdrant that fails, and with another encoder's collection in the way. No encoder is loaded."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import models

from bot.errors import EncoderChanged, KnowledgeUnavailable
from knowledge.chunks import Chunk
from knowledge.embed import DIMENSION
from knowledge.host import Host
from knowledge.index import COLLECTION, Encoded, Index, Owner
from tests.standins.faulty import Faulty, faulty


@dataclass(frozen=True, slots=True)
class Rig:
    """An index that speaks to a real engine through a faulty wire."""

    host: Host
    proxy: Faulty
    index: Index


pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    host = Host(tmp_path_factory.mktemp("index") / "knowledge")
    yield host
    await host.close()


@pytest_asyncio.fixture(loop_scope="session")
async def rig(host: Host) -> AsyncIterator[Rig]:
    endpoint = await host.endpoint()
    async with faulty(endpoint.url) as proxy:
        index = Index(host, url=proxy.url, api_key=endpoint.token, call_limit_s=1)
        await index.ready()
        proxy.asked.clear()
        yield Rig(host, proxy, index)
        proxy.always, proxy.faults = None, []
        assert index._client
        await index._client.delete_collection(COLLECTION)
        await index.close()


def owner(source_id: str = "s1", scope: str = "channel:a", digest: str = "d1") -> Owner:
    return Owner(source_id=source_id, source="a.md", title="A", digest=digest, scope=scope)


def chunks(count: int) -> list[Chunk]:
    return [Chunk(text=f"text {number}", heading="", page=None, position=number, tokens=2) for number in range(count)]


def vector(number: int) -> Encoded:
    return Encoded(dense=[1.0, number / 100, *[0.0] * (DIMENSION - 2)], terms={number + 1: 1.0})


async def put(index: Index, belongs: Owner, count: int) -> None:
    await index.upsert(belongs, chunks(count), [vector(number) for number in range(count)])
    await index.make_live(belongs.source_id, belongs.digest)


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "lost"])
async def test_a_passing_fault_is_not_noticed(rig: Rig, fault: int | str) -> None:
    """One failed request of any kind is tried again, and nothing is written twice."""
    await put(rig.index, owner(), 3)

    rig.proxy.faults = [fault]
    await put(rig.index, owner(), 3)
    rig.proxy.faults = [fault]

    assert await rig.index.count("s1") == 3


@pytest.mark.parametrize("fault", [500, "reset", "slow"])
async def test_a_lasting_fault_is_told_in_one_line(rig: Rig, fault: int | str) -> None:
    """When Qdrant is away for good, the index says where it looked; when it is back, so is the index."""
    await put(rig.index, owner(), 3)
    rig.proxy.always = fault

    with pytest.raises(KnowledgeUnavailable, match=rig.proxy.url) as raised:
        await rig.index.count("s1")

    assert raised.value.retryable
    assert "\n" not in str(raised.value)
    rig.proxy.always = None
    assert await rig.index.count("s1") == 3


async def test_a_wrong_key_is_told_at_once(rig: Rig) -> None:
    """A refused key is not tried again."""
    index = Index(rig.host, url=rig.proxy.url, api_key="wrong")

    with pytest.raises(KnowledgeUnavailable, match="CHINWAG_QDRANT_API_KEY") as raised:
        await index.count("s1")

    assert not raised.value.retryable
    assert len(rig.proxy.asked) == 1
    await index.close()


async def test_a_full_disk_is_told_at_once(rig: Rig) -> None:
    """No space is no reason to try again, but to free some."""
    await put(rig.index, owner(), 1)
    rig.proxy.always, rig.proxy.only = 507, "/points"

    with pytest.raises(KnowledgeUnavailable, match="space"):
        await rig.index.upsert(owner(digest="d2"), chunks(1), [vector(0)])


async def test_nobody_there_is_told(rig: Rig) -> None:
    """A dead address names the setting to look at."""
    index = Index(rig.host, url="http://127.0.0.1:9")

    with pytest.raises(KnowledgeUnavailable, match="CHINWAG_QDRANT_URL"):
        await index.count("s1")
    await index.close()


async def test_a_search_is_one_request(rig: Rig) -> None:
    """Both legs, their fusion and their cosines come in one answer."""
    await put(rig.index, owner(), 5)
    rig.proxy.asked.clear()

    found = await rig.index.search(vector(2), ["channel:a"], 3)

    assert rig.proxy.asked == [f"POST /collections/{COLLECTION}/points/query/batch"]
    assert found[0].chunk.position == 2
    assert found[0].cosine == pytest.approx(1, abs=1e-5)
    assert found[0].terms == {3}


async def test_drafts_are_not_found(rig: Rig) -> None:
    """What is not live yet is in no search and no count of live chunks."""
    await rig.index.upsert(owner(), chunks(2), [vector(0), vector(1)])

    assert await rig.index.search(vector(0), ["channel:a"], 3) == []
    assert (await rig.index.count("s1"), await rig.index.count("s1", live=True)) == (2, 0)
    assert await rig.index.chunks("s1") == []


async def test_versions_are_removed_one_by_one(rig: Rig) -> None:
    """A source's old version goes without touching the new one, nor another source."""
    await put(rig.index, owner(digest="old"), 2)
    await put(rig.index, owner(digest="new"), 3)
    await put(rig.index, owner("s2"), 4)

    await rig.index.delete("s1", but="new")

    assert [await rig.index.count("s1", digest=digest) for digest in ("old", "new")] == [0, 3]
    await rig.index.delete("s1", digest="new")
    assert [await rig.index.count(source) for source in ("s1", "s2")] == [0, 4]


async def test_another_encoders_collection_is_refused(tmp_path: Path) -> None:
    """Vectors of two encoders are not mixed: the error names both and the command that mends it."""
    host = Host(tmp_path / "knowledge")
    index = Index(host)
    await index.total()
    client = index._client
    assert client
    sizes = {"dense": models.VectorParams(size=7, distance=models.Distance.COSINE)}
    await client.create_collection("chinwag-older-encoder", vectors_config=sizes)
    other = Index(host)

    with pytest.raises(EncoderChanged, match=r"older-encoder.*multilingual-e5.*knowledge rebuild"):
        await other.total()

    await other.close()
    await index.close()
    await host.close()


async def test_another_dimension_is_refused(tmp_path: Path) -> None:
    """A collection of our name with vectors of another size is not written to."""
    host = Host(tmp_path / "knowledge")
    index = Index(host)
    await index.total()
    assert index._client
    await index._client.delete_collection(COLLECTION)
    sizes = {"dense": models.VectorParams(size=7, distance=models.Distance.COSINE)}
    await index._client.create_collection(COLLECTION, vectors_config=sizes)
    other = Index(host)

    with pytest.raises(EncoderChanged, match="7 numbers"):
        await other.total()

    await other.close()
    await index.close()
    await host.close()


async def test_a_killed_process_is_not_noticed(tmp_path: Path) -> None:
    """The embedded engine dies between two requests: the second is answered by its successor."""
    host = Host(tmp_path / "knowledge")
    index = Index(host)
    await put(index, owner(), 3)
    assert host.pid

    os.kill(host.pid, signal.SIGKILL)
    found = await index.search(vector(1), ["channel:a"], 3)

    assert len(found) == 3
    await index.close()
    await host.close()


SCOPES = [f"{kind}:{name}" for kind in ("channel", "workspace", "private") for name in "ab"]


async def test_no_passage_leaves_its_audience(rig: Rig) -> None:
    """For any distribution of documents over scopes, and any audience, all found chunks are within the audience."""
    placed: dict[str, str] = {}
    for number in range(18):
        scope = SCOPES[number % len(SCOPES)]
        placed[f"s{number}"] = scope
        await put(rig.index, owner(f"s{number}", scope), 2)
    loop = asyncio.get_running_loop()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(readable=st.sets(st.sampled_from([*SCOPES, "channel:nowhere"])), asked=st.integers(0, 1))
    def holds(readable: set[str], asked: int) -> None:
        found = asyncio.run_coroutine_threadsafe(rig.index.search(vector(asked), readable, 40), loop).result(20)
        assert {one.chunk.scope for one in found} <= readable
        assert all(placed[one.chunk.source_id] == one.chunk.scope for one in found)
        assert len(found) == sum(2 for scope in placed.values() if scope in readable)

    await asyncio.to_thread(holds)
