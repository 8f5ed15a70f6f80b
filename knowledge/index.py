"""Chunks and vectors in Qdrant, through `qdrant-client`: one code path for the embedded engine and for a server.

One collection per encoder and tokenizer, `chinwag-<encoder>-<tokenizer>`; another one means that these changed. Every
point is a chunk with two vectors, `dense` (cosine) and `bm25` (sparse, with Qdrant's idf), and this payload:

| key | value |
| --- | --- |
| `text` | the chunk, opening with its heading |
| `heading` | the path of headings to it, joined with " > " |
| `page`, `position` | the page it begins on (or null), and its number in the document from 0 |
| `source_id`, `source`, `title` | id, path or URL, and title of the document |
| `digest` | sha256 of the document's bytes: which version of the source this is |
| `scope` | who may read it, as `str(Scope)` |
| `language` | English name of the language it seems to be in |
| `state` | `draft` until the whole document stands, then `live` |
| `encoder` | what made the dense vector |

Indexed as keywords: `scope`, `source_id`, `digest`, `state`. Scope and state stand in every query and prefetch.
(`state` is a word because the embedded engine finds nothing by true and false.)
"""

import asyncio
import importlib
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from bot import errors
from bot.errors import EncoderChanged, KnowledgeError, KnowledgeUnavailable, MissingExtra
from bot.messages import Progress
from bot.ports import OnProgress
from knowledge.chunks import Chunk, Document
from knowledge.embed import DIMENSION, NAME, Kind
from knowledge.host import Endpoint, Host
from knowledge.language import language_of
from knowledge.sparse import NAME as SPARSE_NAME

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, models

PREFIX = "chinwag-"
MAKER = f"{NAME}-{SPARSE_NAME}"
COLLECTION = f"{PREFIX}{MAKER}"
LIVE, DRAFT = "live", "draft"
BATCH = 64
"""Points in one upsert; the engine holds its process for about 2 ms over it."""
ENCODE_BATCH = 8
CALL_LIMIT_S = 10.0
ENCODE_LIMIT_S = 60.0
PAUSES_S = (0.1, 0.5)
"""Waits before the second and third try of a call that may succeed later."""
FUSION_K = 2
"""Of reciprocal rank fusion: the usual 60 lets a weak leg drag a strong one down (nDCG@10 .539 against .525)."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A text's two vectors."""

    dense: Sequence[float]
    terms: dict[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A chunk as it stands in the index."""

    id: str
    text: str
    heading: str
    page: int | None
    position: int
    source_id: str
    source: str
    title: str
    digest: str
    scope: str
    language: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A chunk that a search brought up: fused score, cosine (0 when not among the nearest), and its terms."""

    chunk: Stored
    score: float
    cosine: float
    terms: frozenset[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The source and version that chunks belong to."""

    source_id: str
    source: str
    title: str
    digest: str
    scope: str


class Index:
    """The chunks of all sources. Every method raises `KnowledgeUnavailable`, or `EncoderChanged` once and for all."""

    def __init__(self, host: Host, *, url: str = "", api_key: str = "", call_limit_s: float = CALL_LIMIT_S) -> None:
        self._host, self._url, self._api_key, self._call_limit_s = host, url, api_key, call_limit_s
        self._session: aiohttp.ClientSession | None = None
        self._client: AsyncQdrantClient | None = None
        self._at = ""
        self._ready = False
        self._connecting = asyncio.Lock()

    # --- the encoder ---------------------------------------------------------------------------------

    async def encode(self, texts: Sequence[str], kind: Kind) -> list[Encoded]:
        """The vectors of some texts, in order."""
        answer = await self._own("/encode", {"kind": kind, "texts": list(texts)})
        return [
            Encoded(dense=dense, terms=dict(zip(sparse["indices"], sparse["values"], strict=True)))
            for dense, sparse in zip(answer["dense"], answer["sparse"], strict=True)
        ]

    async def chunk(self, document: Document) -> list[Chunk]:
        """Cut a document by the encoder's own count of tokens."""
        answer = await self._own("/chunk", asdict(document))
        return [Chunk(**chunk) for chunk in answer["chunks"]]

    async def about_encoder(self) -> dict[str, Any]:
        """What the process says of its encoder."""
        return await self._own("/about", None)

    async def _own(self, path: str, body: object) -> dict[str, Any]:
        async def ask(endpoint: Endpoint) -> dict[str, Any]:
            if self._session is None:
                self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ENCODE_LIMIT_S))
            method = "GET" if body is None else "POST"
            headers = {"api-key": endpoint.token}
            async with self._session.request(method, endpoint.url + path, json=body, headers=headers) as response:
                answer: dict[str, Any] = await response.json()
            if response.status != 200:
                found = getattr(errors, answer.get("error", ""), KnowledgeUnavailable)
                raise found(answer.get("message", f"The encoder answered {response.status}."))
            return answer

        for pause in (*PAUSES_S, None):
            endpoint = await self._host.endpoint()
            try:
                answer = await ask(endpoint)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if pause is None:
                    raise KnowledgeUnavailable("The encoder does not answer. Try again in a moment.") from error
                await asyncio.sleep(pause)
            else:
                self._host.works()
                return answer
        raise AssertionError("unreachable")

    # --- writing ---------------------------------------------------------------------------------------

    async def upsert(self, owner: Owner, chunks: Sequence[Chunk], vectors: Sequence[Encoded]) -> None:
        """Put chunks with their vectors, as drafts. The same chunks again change nothing."""
        pairs = list(zip(chunks, vectors, strict=True))
        for start in range(0, len(pairs), BATCH):
            await self._put(owner, pairs[start : start + BATCH])

    async def _put(self, owner: Owner, pairs: Sequence[tuple[Chunk, Encoded]]) -> None:
        async def work(client: "AsyncQdrantClient") -> None:
            points = [_point(owner, chunk, encoded) for chunk, encoded in pairs]
            await client.upsert(COLLECTION, points, wait=True)

        await self._call(work)

    async def make_live(self, source_id: str, digest: str) -> None:
        """Let searches see a version of a source, all of it at once."""

        async def work(client: "AsyncQdrantClient") -> None:
            chosen = _matching(source_id=source_id, digest=digest)
            await client.set_payload(COLLECTION, {"state": LIVE}, points=chosen, wait=True)

        await self._call(work)

    async def delete(self, source_id: str, *, digest: str | None = None, but: str | None = None) -> None:
        """Remove a source's chunks: all, only those of version `digest`, or all but version `but`."""

        async def work(client: "AsyncQdrantClient") -> None:
            from qdrant_client import models

            chosen = _matching(source_id=source_id, **({"digest": digest} if digest else {}))
            if but:
                chosen.must_not = _matching(digest=but).must
            await client.delete(COLLECTION, points_selector=models.FilterSelector(filter=chosen), wait=True)

        await self._call(work)

    # --- reading ---------------------------------------------------------------------------------------

    async def count(self, source_id: str, *, digest: str | None = None, live: bool = False) -> int:
        """Chunks of a source, counted in the index: all, or only those that searches see."""
        wanted = {"source_id": source_id} | ({"digest": digest} if digest else {}) | ({"state": LIVE} if live else {})

        async def work(client: "AsyncQdrantClient") -> int:
            return (await client.count(COLLECTION, count_filter=_matching(**wanted), exact=True)).count

        return await self._call(work)

    async def chunks(self, source_id: str) -> list[Stored]:
        """A source's live chunks in reading order."""

        async def work(client: "AsyncQdrantClient") -> list[Stored]:
            chosen, found, offset = _matching(source_id=source_id, state=LIVE), [], None
            while True:
                page, offset = await client.scroll(COLLECTION, chosen, limit=256, offset=offset)
                found += [_stored(str(record.id), record.payload or {}) for record in page]
                if offset is None:
                    return sorted(found, key=lambda chunk: chunk.position)

        return await self._call(work)

    async def search(self, query: Encoded, scopes: Iterable[str], limit: int) -> list[Candidate]:
        """The best `limit` chunks within `scopes` by both legs, fused by rank; one request."""
        readers = sorted(scopes)

        async def work(client: "AsyncQdrantClient") -> list[Candidate]:
            both, nearest = await client.query_batch_points(COLLECTION, _queries(query, readers, limit))
            cosines = {str(point.id): point.score for point in nearest.points}
            found = [_candidate(point, cosines.get(str(point.id), 0.0)) for point in both.points]
            return sorted(found, key=lambda one: (-one.score, one.chunk.source_id, one.chunk.position))

        return await self._call(work)

    async def ready(self) -> None:
        """Connect, and make or check the collection; nothing when that was done."""

        async def work(_client: "AsyncQdrantClient") -> None:
            return

        await self._call(work)

    async def total(self) -> int:
        """All chunks in the index."""

        async def work(client: "AsyncQdrantClient") -> int:
            return (await client.count(COLLECTION, exact=True)).count

        return await self._call(work)

    # --- another encoder's work ------------------------------------------------------------------------

    async def rebuild(self, progress: OnProgress) -> int:
        """Encode every chunk of another encoder's collection anew, and drop that collection when all stand."""
        try:
            await self.ready()
        except EncoderChanged:
            client = self._client
        else:
            return 0
        assert client  # whoever found the stranger is connected
        await self._prepare(client)
        done = 0
        for name in await _strangers(client):
            done += await self._copy(client, name, progress)
            await client.delete_collection(name)
        return done

    async def _copy(self, client: "AsyncQdrantClient", name: str, progress: OnProgress) -> int:
        """Take a collection's chunks over, in the state they are in; ids stay, so that doing it again is harmless."""
        total, done, offset = (await client.count(name, exact=True)).count, 0, None
        while True:
            page, offset = await client.scroll(name, limit=ENCODE_BATCH, offset=offset)
            payloads = [dict(record.payload or {}) for record in page]
            vectors = await self.encode([_chunk(payload).indexed for payload in payloads], "passage")
            points = [
                _as_point(str(record.id), encoded, payload | {"encoder": NAME})
                for record, payload, encoded in zip(page, payloads, vectors, strict=True)
            ]
            await client.upsert(COLLECTION, points, wait=True)
            done += len(points)
            progress(Progress(stage="embed", done=done, total=total))
            if offset is None:
                return done

    # --- the connection --------------------------------------------------------------------------------

    async def _call(self, work: "Callable[[AsyncQdrantClient], Awaitable[Result]]") -> Result:
        """Run a request, again after a short wait where that can help. Nothing here hurts when done twice."""
        for pause in (*PAUSES_S, None):
            try:
                result = await work(await self._qdrant())
            except _client_errors() as error:
                problem = self._problem(error)
                if pause is None or not problem.retryable:
                    raise problem from error
                await asyncio.sleep(pause)
            else:
                self._host.works()
                return result
        raise AssertionError("unreachable")

    def _problem(self, error: Exception) -> KnowledgeError:
        status, where = getattr(error, "status_code", None), self._url or "the knowledge's own process"
        if status in (401, 403):
            return _Final(f"Qdrant at {where} refuses the key. Set CHINWAG_QDRANT_API_KEY.")
        if status == 507 or "No space left" in str(error):
            return _Final("No space is left for the knowledge. Free some and try again.")
        if status is not None and 400 <= status < 500 and status != 429:
            self._ready = False  # somebody may have taken the collection away
            return _Final(f"Qdrant at {where} refused a request ({status}). Look at `chinwag doctor`.")
        if status is not None or hasattr(error, "retry_after_s"):
            return KnowledgeUnavailable(f"Qdrant at {where} answered {status or 'that it is busy'}. Look at its log.")
        return KnowledgeUnavailable(f"No Qdrant answers at {where}. Is it running? See CHINWAG_QDRANT_URL.")

    async def _qdrant(self) -> "AsyncQdrantClient":
        """The client of the process that runs now, its collection made and checked."""
        endpoint = None if self._url else await self._host.endpoint()
        address = self._url or (endpoint.url if endpoint else "")
        async with self._connecting:
            if self._client is None or self._at != address:
                await self._close_client()
                self._client = await self._connect(address, endpoint.token if endpoint else self._api_key)
                self._at, self._ready = address, False
            if not self._ready:
                await self._refuse_strangers(self._client)
                await self._prepare(self._client)
                self._ready = True
            return self._client

    async def _connect(self, address: str, key: str) -> "AsyncQdrantClient":
        try:
            module = await asyncio.to_thread(importlib.import_module, "qdrant_client")  # three seconds, once
        except ImportError as error:
            raise MissingExtra.named("knowledge", "Searching the knowledge") from error
        headers = {"api-key": key} if key else {}
        client: AsyncQdrantClient = module.AsyncQdrantClient(
            url=address,
            port=None,
            headers=headers,
            check_compatibility=False,
            timeout=self._call_limit_s,
            trust_env=False,
            limits=sys.modules["httpx"].Limits(max_keepalive_connections=4),  # on loopback its default keeps none
        )
        return client

    async def _refuse_strangers(self, client: "AsyncQdrantClient") -> None:
        if strangers := await _strangers(client):
            made_by = strangers[0].removeprefix(PREFIX)
            raise EncoderChanged(
                f"The knowledge was made with the encoder {made_by}, and this one is {MAKER}. Their vectors do not mix:"
                " run `chinwag knowledge rebuild`, or go back to that encoder."
            )

    async def _prepare(self, client: "AsyncQdrantClient") -> None:
        from qdrant_client import models

        if await client.collection_exists(COLLECTION):
            await self._check(client)
            return
        await client.create_collection(
            COLLECTION,
            vectors_config={"dense": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)},
            sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            metadata={"encoder": NAME, "sparse": SPARSE_NAME, "dimension": DIMENSION},
        )
        for key in ("scope", "source_id", "digest", "state"):
            await client.create_payload_index(COLLECTION, key, models.PayloadSchemaType.KEYWORD, wait=True)

    async def _check(self, client: "AsyncQdrantClient") -> None:
        config = (await client.get_collection(COLLECTION)).config
        vectors, made_by = config.params.vectors, (config.metadata or {}).get("encoder", NAME)
        dense = vectors.get("dense") if isinstance(vectors, dict) else None
        size = dense.size if dense else 0
        if made_by != NAME or size != DIMENSION:
            raise EncoderChanged(
                f"The knowledge was made with the encoder {made_by} ({size} numbers), and this one is {NAME}"
                f" ({DIMENSION}). Their vectors do not mix: run `chinwag knowledge rebuild`."
            )

    async def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def close(self) -> None:
        """Close the connections; the process is its host's."""
        await self._close_client()
        if self._session is not None:
            await self._session.close()
            self._session = None


class _Final(KnowledgeUnavailable):
    """Trying again at once would not help."""

    retryable = False


def point_id(owner: Owner, position: int) -> str:
    """The same for the same chunk of the same version of a source, so that writing twice is writing once."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{owner.source_id}/{owner.digest}/{position}"))


def index_folder(data_dir: Path) -> Path:
    """Where the embedded index lives."""
    return data_dir / "knowledge"


def _payload(owner: Owner, chunk: Chunk) -> dict[str, Any]:
    return asdict(owner) | {
        "text": chunk.text,
        "heading": chunk.heading,
        "page": chunk.page,
        "position": chunk.position,
        "language": language_of(chunk.text),
        "state": DRAFT,
        "encoder": NAME,
    }


def _stored(identity: str, payload: dict[str, Any]) -> Stored:
    keys = (key for key in Stored.__dataclass_fields__ if key != "id")
    return Stored(id=identity, **{key: payload.get(key, "") for key in keys})


def _client_errors() -> tuple[type[Exception], ...]:
    """Errors of the client; before it is imported it cannot raise any."""
    if "qdrant_client" not in sys.modules:
        return (OSError,)
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    return OSError, QdrantException, ApiException, ResponseHandlingException, UnexpectedResponse


def _matching(**wanted: str) -> "models.Filter":
    from qdrant_client import models

    return models.Filter(
        must=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in wanted.items()]
    )


def _readable(scopes: Sequence[str]) -> "models.Filter":
    from qdrant_client import models

    live = models.FieldCondition(key="state", match=models.MatchValue(value=LIVE))
    return models.Filter(must=[live, models.FieldCondition(key="scope", match=models.MatchAny(any=list(scopes)))])


def _queries(query: Encoded, scopes: Sequence[str], limit: int) -> "list[models.QueryRequest]":
    """Both legs fused, and the dense leg once more for its cosines: the fused scores are ranks, not evidence."""
    from qdrant_client import models

    allowed, dense = _readable(scopes), list(query.dense)
    sparse = models.SparseVector(indices=list(query.terms), values=list(query.terms.values()))
    legs = [models.Prefetch(query=dense, using="dense", filter=allowed, limit=limit)]
    if query.terms:
        legs.append(models.Prefetch(query=sparse, using="bm25", filter=allowed, limit=limit))
    fused = models.QueryRequest(
        prefetch=legs,
        query=models.RrfQuery(rrf=models.Rrf(k=FUSION_K)),
        filter=allowed,
        limit=limit,
        with_payload=True,
        with_vector=["bm25"],
    )
    return [fused, models.QueryRequest(query=dense, using="dense", filter=allowed, limit=2 * limit)]


def _candidate(point: "models.ScoredPoint", cosine: float) -> Candidate:
    sparse: Any = point.vector["bm25"] if isinstance(point.vector, dict) else None
    return Candidate(
        chunk=_stored(str(point.id), point.payload or {}),
        score=point.score,
        cosine=cosine,
        terms=frozenset(sparse.indices if sparse else ()),
    )


def _point(owner: Owner, chunk: Chunk, encoded: Encoded) -> "models.PointStruct":
    return _as_point(point_id(owner, chunk.position), encoded, _payload(owner, chunk))


def _as_point(identity: str, encoded: Encoded, payload: dict[str, Any]) -> "models.PointStruct":
    from qdrant_client import models

    sparse = models.SparseVector(indices=list(encoded.terms), values=list(encoded.terms.values()))
    return models.PointStruct(id=identity, vector={"dense": list(encoded.dense), "bm25": sparse}, payload=payload)


def _chunk(payload: dict[str, Any]) -> Chunk:
    return Chunk(
        text=str(payload.get("text", "")),
        heading=str(payload.get("heading", "")),
        page=payload.get("page"),
        position=int(payload.get("position", 0)),
        tokens=0,
    )


async def _strangers(client: "AsyncQdrantClient") -> list[str]:
    names = [found.name for found in (await client.get_collections()).collections]
    return [name for name in names if name.startswith(PREFIX) and name != COLLECTION]
