"""The index's own process: Qdrant's engine and the encoder, answering on loopback to its parent only.

`qdrant-edge-py` is the real Qdrant engine as a library, but it holds Python's global lock in every call; in the bot's
process that would stop the heartbeats. So it runs here, behind the few REST routes of a Qdrant server that
`qdrant-client` uses, and `knowledge.index` cannot tell it from a server. Own routes: `/encode`, `/chunk`, `/about`.

The parent writes one line of JSON to standard input (token, folder) and reads one line from standard output (port, or
what is wrong). Every request must carry the token. When standard input ends, the parent is gone: everything is
flushed and the process ends. Updates are applied one after another; queries of the encoder do not wait for passages.

The engine's optimiser is never run: it stops the process for seconds, and plain scans take 6 ms at 50,000 chunks.
"""

import asyncio
import contextlib
import fcntl
import hmac
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bot.errors import ChinwagError
from knowledge.chunks import Block, Document, Sizes, chunk
from knowledge.embed import DIMENSION, NAME, Encoder
from knowledge.sparse import NAME as SPARSE_NAME
from knowledge.sparse import Sparse

if TYPE_CHECKING:
    import qdrant_edge as edge

MAX_BODY_BYTES = 64 << 20
LOCK_WAIT_S = 2.0

Json = dict[str, Any]


class BadRequest(Exception):
    """The request is not one that this small server understands."""


class NotFound(Exception):
    """There is no such collection."""


class Collections:
    """The collections in a folder, one engine shard each, and their settings as they were created."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[str, edge.EdgeShard] = {}

    def _paths(self, name: str) -> tuple[Path, Path]:
        if not re.fullmatch(r"[\w-]{1,100}", name):
            raise BadRequest(f"a collection cannot be called {name!r}")
        return self._folder / name, self._folder / f"{name}.json"

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def exists(self, name: str) -> bool:
        return self._paths(name)[1].exists()

    def create(self, name: str, settings: Json) -> None:
        import qdrant_edge as edge

        data, record = self._paths(name)
        if record.exists():
            raise BadRequest(f"Collection `{name}` already exists!")
        shutil.rmtree(data, ignore_errors=True)  # a creation that was cut short
        data.mkdir(parents=True)
        self._shards[name] = edge.EdgeShard.create(str(data), _config(settings))
        draft = record.with_suffix(".draft")
        draft.write_text(json.dumps(settings))
        draft.rename(record)

    def delete(self, name: str) -> bool:
        data, record = self._paths(name)
        existed = record.exists()
        record.unlink(missing_ok=True)
        if shard := self._shards.pop(name, None):
            shard.close()
        shutil.rmtree(data, ignore_errors=True)
        return existed

    def settings(self, name: str) -> Json:
        if not self.exists(name):
            raise NotFound(f"Collection `{name}` doesn't exist!")
        settings: Json = json.loads(self._paths(name)[1].read_text())
        return settings

    def shard(self, name: str) -> "edge.EdgeShard":
        import qdrant_edge as edge

        if name not in self._shards:
            if not self.exists(name):
                raise NotFound(f"Collection `{name}` doesn't exist!")
            self._shards[name] = edge.EdgeShard.load(str(self._paths(name)[0]))
        return self._shards[name]

    def close(self) -> None:
        for shard in self._shards.values():
            shard.flush()
            shard.close()
        self._shards.clear()


# --- Qdrant's JSON to the engine's own values -------------------------------------------------------


def _config(settings: Json) -> "edge.EdgeConfig":
    import qdrant_edge as edge

    distances = {
        "Cosine": edge.Distance.Cosine,
        "Dot": edge.Distance.Dot,
        "Euclid": edge.Distance.Euclid,
        "Manhattan": edge.Distance.Manhattan,
    }
    vectors = {
        name: edge.EdgeVectorParams(size=vector["size"], distance=distances[vector["distance"]])
        for name, vector in (settings.get("vectors") or {}).items()
    }
    sparse = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if vector.get("modifier") == "idf" else None)
        for name, vector in (settings.get("sparse_vectors") or {}).items()
    }
    return edge.EdgeConfig(vectors=vectors, sparse_vectors=sparse)


def _filter(wire: Json | None) -> "edge.Filter | None":
    import qdrant_edge as edge

    if not wire:
        return None
    clauses: Json = {}
    for clause in ("must", "should", "must_not"):
        conditions = wire.get(clause)
        if conditions is not None:
            listed = conditions if isinstance(conditions, list) else [conditions]
            clauses[clause] = [_condition(condition) for condition in listed]
    if set(wire) - set(clauses) - {key for key, value in wire.items() if value is None}:
        raise BadRequest(f"filters with {sorted(wire)} are not supported here")
    return edge.Filter(**clauses)


def _condition(wire: Json) -> Any:  # the engine's union of conditions
    import qdrant_edge as edge

    if "has_id" in wire:
        return edge.HasIdCondition(set(wire["has_id"]))
    if "key" not in wire:
        return _filter(wire)
    match = wire.get("match") or {}
    if "value" in match:
        return edge.FieldCondition(wire["key"], match=edge.MatchValue(match["value"]))
    if "any" in match:
        return edge.FieldCondition(wire["key"], match=edge.MatchAny(list(match["any"])))
    if "except" in match:
        return edge.FieldCondition(wire["key"], match=edge.MatchExcept(list(match["except"])))
    raise BadRequest(f"the condition {wire} is not supported here")


def _vector(wire: Any) -> Any:  # dense, sparse, or named ones of both
    import qdrant_edge as edge

    if isinstance(wire, dict):
        if set(wire) == {"indices", "values"}:
            return edge.SparseVector(wire["indices"], wire["values"])
        return {name: _vector(vector) for name, vector in wire.items()}
    return wire


def _scoring(wire: Any, using: str | None) -> Any:  # the engine's union of queries
    import qdrant_edge as edge

    if isinstance(wire, dict) and "rrf" in wire:
        return edge.Fusion.Rrf(k=wire["rrf"].get("k") or 2, weights=wire["rrf"].get("weights"))
    if isinstance(wire, dict) and "nearest" in wire:
        wire = wire["nearest"]
    if isinstance(wire, list) or (isinstance(wire, dict) and "indices" in wire):
        return edge.Query.Nearest(_vector(wire), using=using)
    raise BadRequest("only nearest and rrf queries are supported here")


def _query(wire: Json) -> "edge.QueryRequest":
    import qdrant_edge as edge

    return edge.QueryRequest(
        limit=wire.get("limit") or 10,
        offset=wire.get("offset") or 0,
        query=_scoring(wire["query"], wire.get("using")),
        prefetches=[_prefetch(part) for part in wire.get("prefetch") or ()],
        filter=_filter(wire.get("filter")),
        score_threshold=wire.get("score_threshold"),
        with_payload=bool(wire.get("with_payload")),
        with_vector=wire.get("with_vector") or False,
    )


def _prefetch(wire: Json) -> "edge.Prefetch":
    import qdrant_edge as edge

    return edge.Prefetch(
        limit=wire.get("limit") or 10,
        query=_scoring(wire["query"], wire.get("using")),
        filter=_filter(wire.get("filter")),
        score_threshold=wire.get("score_threshold"),
    )


def _scored(point: "edge.ScoredPoint") -> Json:
    found = {"id": _id(point.id), "version": point.version, "score": point.score, "payload": point.payload}
    return found if point.vector is None else found | {"vector": _vector_wire(point.vector)}


def _vector_wire(vector: Any) -> Any:  # dense, sparse, or named ones of both
    if isinstance(vector, dict):
        return {name: _vector_wire(part) for name, part in vector.items()}
    if hasattr(vector, "indices"):
        return {"indices": vector.indices, "values": vector.values}
    return vector


def _id(value: object) -> int | str:
    return value if isinstance(value, int) else str(value)


# --- the routes -------------------------------------------------------------------------------------


class Server:
    """Answers requests; the engine and the encoder each have a thread of their own."""

    def __init__(self, token: str, folder: Path | None) -> None:
        self._token = token
        self._collections = Collections(folder) if folder else None
        self._engine = ThreadPoolExecutor(1, "engine")
        self._passages = ThreadPoolExecutor(1, "passages")
        self._queries = ThreadPoolExecutor(1, "queries")
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()
        self._sparse = Sparse()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        one = "/collections/{name}"
        app.add_routes(
            [
                web.get("/", self._version),
                web.get("/healthz", self._version),
                web.get("/readyz", self._version),
                web.get("/about", self._about),
                web.post("/encode", self._encode),
                web.post("/chunk", self._chunk),
                web.get("/collections", self._on_engine(self._list)),
                web.get(f"{one}/exists", self._on_engine(self._exists)),
                web.get(one, self._on_engine(self._info)),
                web.put(one, self._on_engine(self._create)),
                web.delete(one, self._on_engine(self._drop)),
                web.put(f"{one}/index", self._on_engine(self._create_index)),
                web.put(f"{one}/points", self._on_engine(self._upsert)),
                web.post(f"{one}/points", self._on_engine(self._retrieve)),
                web.post(f"{one}/points/delete", self._on_engine(self._delete)),
                web.post(f"{one}/points/payload", self._on_engine(self._set_payload)),
                web.post(f"{one}/points/scroll", self._on_engine(self._scroll)),
                web.post(f"{one}/points/count", self._on_engine(self._count)),
                web.post(f"{one}/points/query", self._on_engine(self._one_query)),
                web.post(f"{one}/points/query/batch", self._on_engine(self._query_batch)),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not hmac.compare_digest(request.headers.get("api-key", ""), self._token):
            return web.json_response({"status": {"error": "Must provide the API key"}}, status=401)
        return await handler(request)

    def _on_engine(
        self, work: Callable[[Collections, str, Json], object]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A route whose work runs on the engine's thread and answers in Qdrant's envelope."""

        async def answer(request: web.Request) -> web.Response:
            began = time.perf_counter()
            body: Json = await request.json() if request.can_read_body else {}
            name, loop = request.match_info.get("name", ""), asyncio.get_running_loop()
            try:
                if self._collections is None:
                    raise NotFound("this process has no index, only the encoder")
                result = await loop.run_in_executor(self._engine, work, self._collections, name, body)
            except (BadRequest, KeyError, TypeError, ValueError) as error:
                return web.json_response({"status": {"error": f"Bad request: {error}"}}, status=400)
            except NotFound as error:
                return web.json_response({"status": {"error": f"Not found: {error}"}}, status=404)
            except Exception as error:  # noqa: BLE001  # the engine's errors have no common type; a request must end
                status = 507 if "No space left" in str(error) or "os error 28" in str(error) else 500
                return web.json_response({"status": {"error": f"Service internal error: {error}"}}, status=status)
            return web.json_response({"result": result, "status": "ok", "time": time.perf_counter() - began})

        return answer

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"title": "chinwag's embedded qdrant", "version": "1.20.0"})

    async def _about(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"encoder": NAME, "sparse": SPARSE_NAME, "dimension": DIMENSION, "loaded": self._encoder is not None}
        )

    def _loaded(self) -> Encoder:
        with self._loading:
            if self._encoder is None:
                self._encoder = Encoder.load()
            return self._encoder

    async def _encode(self, request: web.Request) -> web.Response:
        body = await request.json()
        kind, texts = body["kind"], body["texts"]
        thread = self._queries if kind == "query" else self._passages

        def work() -> Json:
            vectors = self._loaded().encode(texts, kind)
            terms = [self._sparse.query(text) if kind == "query" else self._sparse.passage(text) for text in texts]
            sparse = [{"indices": list(found), "values": list(found.values())} for found in terms]
            return {"dense": vectors.tolist(), "sparse": sparse}

        return await self._own(thread, work)

    async def _chunk(self, request: web.Request) -> web.Response:
        body = await request.json()

        def work() -> Json:
            encoder = self._loaded()
            document = Document(title=body["title"], blocks=tuple(Block(**block) for block in body["blocks"]))
            sizes = Sizes(**body["sizes"]) if body.get("sizes") else None
            return {"chunks": [asdict(found) for found in chunk(document, encoder.count, sizes)]}

        return await self._own(self._passages, work)

    async def _own(self, thread: ThreadPoolExecutor, work: Callable[[], Json]) -> web.Response:
        try:
            return web.json_response(await asyncio.get_running_loop().run_in_executor(thread, work))
        except ChinwagError as error:
            return web.json_response({"error": type(error).__name__, "message": str(error)}, status=500)

    # each of these runs on the engine's thread

    def _list(self, collections: Collections, _name: str, _body: Json) -> object:
        return {"collections": [{"name": name} for name in collections.names()]}

    def _exists(self, collections: Collections, name: str, _body: Json) -> object:
        return {"exists": collections.exists(name)}

    def _info(self, collections: Collections, name: str, _body: Json) -> object:
        settings = collections.settings(name)
        info = collections.shard(name).info()
        params = {key: settings[key] for key in ("vectors", "sparse_vectors") if settings.get(key)}
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000}
        optimizer = {"default_segment_number": 0, "flush_interval_sec": 5}
        config = {"params": params, "hnsw_config": hnsw, "optimizer_config": optimizer}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "segments_count": info.segments_count,
            "config": config | {"metadata": settings.get("metadata")},
            "payload_schema": {key: {"data_type": "keyword", "points": 0} for key in info.payload_schema},
        }

    def _create(self, collections: Collections, name: str, body: Json) -> object:
        collections.create(name, body)
        return True

    def _drop(self, collections: Collections, name: str, _body: Json) -> object:
        return collections.delete(name)

    def _create_index(self, collections: Collections, name: str, body: Json) -> object:
        import qdrant_edge as edge

        kinds = {
            "keyword": edge.PayloadSchemaType.Keyword,
            "integer": edge.PayloadSchemaType.Integer,
            "bool": edge.PayloadSchemaType.Bool,
        }
        schema = body["field_schema"]
        kind = kinds[schema["type"] if isinstance(schema, dict) else schema]
        collections.shard(name).update(edge.UpdateOperation.create_field_index(body["field_name"], kind))
        return _done()

    def _upsert(self, collections: Collections, name: str, body: Json) -> object:
        import qdrant_edge as edge

        points = [edge.Point(point["id"], _vector(point["vector"]), point.get("payload")) for point in body["points"]]
        collections.shard(name).update(edge.UpdateOperation.upsert_points(points))
        return _done()

    def _delete(self, collections: Collections, name: str, body: Json) -> object:
        import qdrant_edge as edge

        if "points" in body:
            operation = edge.UpdateOperation.delete_points(body["points"])
        else:
            operation = edge.UpdateOperation.delete_points_by_filter(_filter(body["filter"]) or edge.Filter())
        shard = collections.shard(name)
        shard.update(operation)
        shard.flush()
        return _done()

    def _set_payload(self, collections: Collections, name: str, body: Json) -> object:
        import qdrant_edge as edge

        if body.get("points"):
            operation = edge.UpdateOperation.set_payload(body["points"], body["payload"])
        else:
            wanted = _filter(body["filter"]) or edge.Filter()
            operation = edge.UpdateOperation.set_payload_by_filter(wanted, body["payload"])
        shard = collections.shard(name)
        shard.update(operation)
        shard.flush()  # the last step of learning: what stands now also survives the power
        return _done()

    def _retrieve(self, collections: Collections, name: str, body: Json) -> object:
        found = collections.shard(name).retrieve(body["ids"], with_payload=bool(body.get("with_payload", True)))
        return [{"id": _id(record.id), "payload": record.payload} for record in found]

    def _scroll(self, collections: Collections, name: str, body: Json) -> object:
        import qdrant_edge as edge

        found, following = collections.shard(name).scroll(
            edge.ScrollRequest(
                offset=body.get("offset"),
                limit=body.get("limit") or 10,
                filter=_filter(body.get("filter")),
                with_payload=bool(body.get("with_payload", True)),
                with_vector=False,
            )
        )
        points = [{"id": _id(record.id), "payload": record.payload} for record in found]
        return {"points": points, "next_page_offset": None if following is None else _id(following)}

    def _count(self, collections: Collections, name: str, body: Json) -> object:
        import qdrant_edge as edge

        request = edge.CountRequest(exact=body.get("exact") is not False, filter=_filter(body.get("filter")))
        return {"count": collections.shard(name).count(request)}

    def _one_query(self, collections: Collections, name: str, body: Json) -> object:
        return {"points": [_scored(point) for point in collections.shard(name).query(_query(body))]}

    def _query_batch(self, collections: Collections, name: str, body: Json) -> object:
        shard = collections.shard(name)
        return [{"points": [_scored(point) for point in shard.query(_query(one))]} for one in body["searches"]]

    def close(self) -> None:
        """Flush and close the index after the update that is running."""
        if self._collections is not None:
            self._engine.submit(self._collections.close).result()


def _done() -> Json:
    return {"operation_id": 0, "status": "completed"}


# --- starting and ending ------------------------------------------------------------------------------


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent: the engine may hold the lock while standard input ends."""
    import ctypes
    import signal

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def _lock(folder: Path) -> int | None:
    """Own the folder; None when another process does, and goes on doing so."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > end:
                return None
            time.sleep(0.1)
        else:
            return lock


async def _serve(start: Json) -> None:
    folder = Path(start["folder"]) if start.get("folder") else None
    server = Server(start["token"], folder)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _say({"port": runner.addresses[0][1]})
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
    await runner.cleanup()
    server.close()


def _say(line: Json) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read what to do from standard input, say the port, serve until standard input ends."""
    _die_with_parent()
    start = json.loads(sys.stdin.buffer.readline())
    if start.get("folder"):
        try:
            lock = _lock(Path(start["folder"]))
        except OSError as error:
            _say({"error": f"The folder of the knowledge cannot be used: {error}. Check its owner and free space."})
            return
        if lock is None:
            _say(
                {
                    "error": f"Another process uses the knowledge in {start['folder']}. Stop it,"
                    " or set CHINWAG_QDRANT_URL so that both use one Qdrant server."
                }
            )
            return
    asyncio.run(_serve(start))
    os._exit(0)  # the encoder's threads may still be busy with passages nobody waits for


if __name__ == "__main__":
    main()
