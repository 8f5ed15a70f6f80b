"""The index's own process: the routes of a Qdrant server, the token, the lock, its death and its return."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import aiohttp
import pytest
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from bot.errors import KnowledgeUnavailable
from knowledge.host import Endpoint, Host
from knowledge.process import module_environment

NAME = "things"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path / "knowledge")
    yield host
    await host.close()


def client_of(endpoint: Endpoint) -> AsyncQdrantClient:
    return AsyncQdrantClient(
        url=endpoint.url, port=None, headers={"api-key": endpoint.token}, check_compatibility=False, trust_env=False
    )


async def filled(client: AsyncQdrantClient) -> None:
    await client.create_collection(
        NAME,
        vectors_config={"dense": models.VectorParams(size=2, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        metadata={"encoder": "none"},
    )
    await client.create_payload_index(NAME, "kind", models.PayloadSchemaType.KEYWORD)
    points = [
        models.PointStruct(
            id=number,
            vector={"dense": [1.0, number], "bm25": models.SparseVector(indices=[number], values=[1.0])},
            payload={"kind": "even" if number % 2 == 0 else "odd", "number": number},
        )
        for number in range(6)
    ]
    await client.upsert(NAME, points, wait=True)


def is_kind(*kinds: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="kind", match=models.MatchAny(any=list(kinds)))])


async def test_it_answers_like_a_qdrant_server(host: Host) -> None:
    """qdrant-client creates, counts, scrolls, changes and deletes as it would on a server."""
    client = client_of(await host.endpoint())
    assert not await client.collection_exists(NAME)
    await filled(client)

    assert [found.name for found in (await client.get_collections()).collections] == [NAME]
    info = await client.get_collection(NAME)
    assert info.points_count == 6
    assert info.config.metadata == {"encoder": "none"}
    assert (await client.count(NAME, is_kind("odd"), exact=True)).count == 3
    await client.set_payload(NAME, {"kind": "prime"}, points=models.Filter(must=[models.HasIdCondition(has_id=[2, 3])]))
    assert (await client.count(NAME, is_kind("prime", "nothing"))).count == 2
    await client.delete(NAME, models.FilterSelector(filter=models.Filter(must_not=is_kind("prime").must)))
    page, offset = await client.scroll(NAME, limit=10)
    assert [(record.id, record.payload) for record in page] == [
        (2, {"kind": "prime", "number": 2}),
        (3, {"kind": "prime", "number": 3}),
    ]
    assert offset is None
    assert await client.delete_collection(NAME)
    assert not await client.collection_exists(NAME)
    await client.close()


async def test_scrolling_goes_on_where_it_stopped(host: Host) -> None:
    """Page by page, every point comes once."""
    client = client_of(await host.endpoint())
    await filled(client)

    seen, offset = [], None
    while True:
        page, offset = await client.scroll(NAME, limit=2, offset=offset)
        seen += [record.id for record in page]
        if offset is None:
            break

    assert sorted(map(int, map(str, seen))) == list(range(6))
    await client.close()


async def test_legs_are_fused_and_filtered_inside(host: Host) -> None:
    """A prefetch query with rank fusion, its filter in every leg, as the knowledge asks it."""
    client = client_of(await host.endpoint())
    await filled(client)
    allowed = is_kind("odd")
    query = models.QueryRequest(
        prefetch=[
            models.Prefetch(query=[1.0, 4.0], using="dense", filter=allowed, limit=5),
            models.Prefetch(
                query=models.SparseVector(indices=[1, 2], values=[1.0, 1.0]), using="bm25", filter=allowed, limit=5
            ),
        ],
        query=models.RrfQuery(rrf=models.Rrf(k=2)),
        with_payload=True,
        with_vector=["bm25"],
        limit=5,
    )

    (found,) = await client.query_batch_points(NAME, [query])

    assert found.points[0].id == 1
    assert {point.id for point in found.points} == {1, 3, 5}
    assert isinstance(found.points[0].vector, dict)
    sparse = found.points[0].vector["bm25"]
    assert isinstance(sparse, models.SparseVector)
    assert sparse.indices == [1]
    await client.close()


async def test_what_it_does_not_know_is_refused_as_a_server_does(host: Host) -> None:
    """A missing collection is 404, a query or name it cannot handle 400, a second creation too."""
    client = client_of(await host.endpoint())
    await filled(client)
    nested = models.Filter(must=[models.FieldCondition(key="number", range=models.Range(gt=1))])

    async def status_of(wrong: Awaitable[object]) -> int | None:
        with pytest.raises(UnexpectedResponse) as raised:
            await wrong
        return raised.value.status_code

    assert await status_of(client.count("nowhere")) == 404
    assert await status_of(client.count(NAME, nested)) == 400
    for name in (NAME, "a b", "without-vectors"):
        assert await status_of(client.create_collection(name, vectors_config={})) == 400
    await client.close()


async def test_nobody_without_the_token_is_answered(host: Host) -> None:
    """Another program of this machine learns nothing, and no secret stands in the process list."""
    endpoint = await host.endpoint()

    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"api-key": "wrong"}):
            for path in ("/", "/about", "/collections", "/encode"):
                async with session.get(endpoint.url + path, headers=headers) as response:
                    assert response.status == 401
    if sys.platform == "linux":
        assert endpoint.token not in _proc(host.pid, "cmdline")


async def test_points_survive_its_death(host: Host) -> None:
    """Killed without warning, it is started anew at the next use, and every acknowledged point is there."""
    client = client_of(await host.endpoint())
    await filled(client)
    await client.close()
    pid = host.pid
    assert pid

    os.kill(pid, signal.SIGKILL)
    await host.ended()
    client = client_of(await host.endpoint())

    assert host.pid != pid
    assert (await client.count(NAME)).count == 6
    await client.close()


async def test_what_keeps_dying_is_given_a_rest(host: Host) -> None:
    """A process that dies again and again is not started in a hot loop; the error says how long to wait."""
    for _ in range(2):
        await host.endpoint()
        assert host.pid
        os.kill(host.pid, signal.SIGKILL)
        await host.ended()

    with pytest.raises(KnowledgeUnavailable) as raised:
        await host.endpoint()

    assert raised.value.retry_after_s
    assert raised.value.retry_after_s > 1


async def test_a_second_process_on_the_folder_is_refused(host: Host, tmp_path: Path) -> None:
    """Two bots on one data folder: the second is told so, and what to do; the first works on."""
    await host.endpoint()
    second = Host(tmp_path / "knowledge")

    with pytest.raises(KnowledgeUnavailable, match="CHINWAG_QDRANT_URL"):
        await second.endpoint()

    assert host.pid
    assert (await host.endpoint()).url


async def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """When the parent is killed, the child goes too, and the folder is free."""
    code = (
        "import asyncio, sys; from pathlib import Path; from knowledge.host import Host\n"
        "async def main():\n"
        f"    host = Host(Path({str(tmp_path / 'knowledge')!r})); await host.endpoint()\n"
        "    print(host.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE, env=module_environment()
    )
    assert parent.stdout
    child = int(await parent.stdout.readline())

    parent.kill()
    await parent.wait()

    async with asyncio.timeout(10):
        while _alive(child):  # noqa: ASYNC110  # nobody tells when a process that is not ours ends
            await asyncio.sleep(0.02)
    host = Host(tmp_path / "knowledge")
    await host.endpoint()
    await host.close()


def _proc(pid: int | None, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except FileNotFoundError:
        return ""


def _alive(pid: int) -> bool:
    stat = _proc(pid, "stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] != "Z"


async def test_closing_ends_it(host: Host) -> None:
    """After `close` nothing runs, and closing again does nothing."""
    await host.endpoint()
    pid = host.pid
    assert pid
    await host.close()
    await host.close()

    assert host.pid is None
    assert not _alive(pid)


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """Where a file stands in the way of the folder, the error says which."""
    (tmp_path / "knowledge").write_text("in the way")

    with pytest.raises(KnowledgeUnavailable, match="cannot be used"):
        await Host(tmp_path / "knowledge").endpoint()


async def test_collections_are_listed_after_a_restart_without_loading(host: Host, tmp_path: Path) -> None:
    """The settings of a collection are kept beside it, as it was created."""
    client = client_of(await host.endpoint())
    await filled(client)
    await client.close()
    await host.close()

    kept = json.loads((tmp_path / "knowledge" / f"{NAME}.json").read_text())

    assert kept["vectors"]["dense"]["size"] == 2
