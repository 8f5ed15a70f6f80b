"""The knowledge: documents in, passages out, over an index and the ledger of sources.

Learning a source takes these steps, and a failure in any of them leaves the knowledge as it was: fetch, extract, cut
into chunks, put chunks and vectors as drafts, note the source, let searches see all of it at once, count, remove the
version before. A process that dies half-way leaves drafts that no search sees; the next attempt does the work anew.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath

from bot.errors import ChinwagError, EncoderChanged, KnowledgeError, KnowledgeUnavailable, MissingExtra, SourceNotFound
from bot.messages import (
    Audience,
    Health,
    Learned,
    NewSource,
    Passage,
    Progress,
    Removed,
    Retrieval,
    Scope,
    Source,
)
from bot.ports import KnowledgeOptions, OnProgress, SourceRegistry
from knowledge import retrieve
from knowledge.chunks import Chunk
from knowledge.embed import DIMENSION, NAME
from knowledge.extract import Extractor
from knowledge.host import Host
from knowledge.index import ENCODE_BATCH, Index, Owner, Stored, index_folder
from knowledge.sources import Reader

CANDIDATES = 40
"""Chunks that a search looks at before it chooses."""


class Library:
    """The `KnowledgeBase` over Qdrant."""

    def __init__(self, index: Index, registry: SourceRegistry, reader: Reader, extractor: Extractor) -> None:
        self._index, self._registry, self._reader, self._extractor = index, registry, reader, extractor
        self._learning: dict[str, asyncio.Lock] = {}

    async def search(self, query: str, audience: Audience, k: int) -> Retrieval:
        """See `Retriever.search`. Costs nothing where nothing was learned."""
        sources = await self._registry.count_sources(audience.scopes)
        if not sources or not query.strip() or k < 1:
            return Retrieval(sources_searched=sources)
        (encoded,), _ = await asyncio.gather(self._index.encode([query], "query"), self._index.ready())
        candidates = await self._index.search(encoded, audience.scopes, max(CANDIDATES, k))
        scores = {candidate.chunk.id: candidate.score for candidate in candidates}
        chosen = retrieve.choose(query, frozenset(encoded.terms), candidates, k)
        return Retrieval(passages=tuple(passage(chunk, scores[chunk.id]) for chunk in chosen), sources_searched=sources)

    async def add(self, source: NewSource, scope: Scope, *, added_by: str, progress: OnProgress) -> Learned:
        """See `KnowledgeBase.add`."""
        uri = self._reader.address(source)
        async with self._one_at_a_time(f"{scope}|{uri}"):
            progress(Progress(stage="fetch"))
            raw = await self._reader.read(source)
            digest = hashlib.sha256(raw.content).hexdigest()
            known = await self._registry.sources(frozenset({str(scope)}))
            same = next((one for one in known if one.digest == digest), None)
            if same and await self._index.count(same.id, digest=digest, live=True) == same.chunks:
                return Learned(source=same, new=False)
            before = next((one for one in known if one.uri == uri), same)
            progress(Progress(stage="extract"))
            document = await self._extractor.extract(raw)
            chunks = await self._index.chunk(document)
            learned = Source(
                id=before.id if before else new_id(uri, scope, known),
                uri=uri,
                title=document.title,
                scope=scope,
                digest=digest,
                chunks=len(chunks),
                pages=document.pages,
                size_bytes=len(raw.content),
                learned_at=datetime.now(UTC),
                added_by=added_by,
            )
            await self._replace(before, learned, chunks, progress)
            return Learned(source=learned, new=True, replaced=before is not None)

    async def _replace(
        self, before: Source | None, learned: Source, chunks: Sequence[Chunk], progress: OnProgress
    ) -> None:
        """Put the new version, then take the old one away; undo everything when a step fails."""
        try:
            await self._store(learned, chunks, progress)
            await self._registry.put_source(learned)
            await self._index.make_live(learned.id, learned.digest)
            progress(Progress(stage="verify"))
            counted = await self._index.count(learned.id, digest=learned.digest, live=True)
            if counted != len(chunks):
                raise KnowledgeUnavailable(
                    f"The index shows {counted} of {len(chunks)} chunks. Learn the source again."
                )
        except BaseException:
            await asyncio.shield(self._undo(before, learned))
            raise
        await self._index.delete(learned.id, but=learned.digest)

    async def _store(self, learned: Source, chunks: Sequence[Chunk], progress: OnProgress) -> None:
        owner = Owner(
            source_id=learned.id,
            source=learned.uri,
            title=learned.title,
            digest=learned.digest,
            scope=str(learned.scope),
        )
        await self._index.delete(learned.id, digest=learned.digest)  # what an earlier attempt left behind
        for start in range(0, len(chunks), ENCODE_BATCH):
            progress(Progress(stage="embed", done=start, total=len(chunks)))
            part = chunks[start : start + ENCODE_BATCH]
            vectors = await self._index.encode([chunk.indexed for chunk in part], "passage")
            await self._index.upsert(owner, part, vectors)
        progress(Progress(stage="index", done=len(chunks), total=len(chunks)))

    async def _undo(self, before: Source | None, learned: Source) -> None:
        """Take back a version that does not stand. What cannot be reached now stays unseen, for it is not live."""
        with contextlib.suppress(ChinwagError):
            if before is None:
                await self._registry.delete_source(learned.id)
            else:
                await self._registry.put_source(before)
        if before is None or before.digest != learned.digest:
            with contextlib.suppress(KnowledgeError):
                await self._index.delete(learned.id, digest=learned.digest)

    @contextlib.asynccontextmanager
    async def _one_at_a_time(self, key: str) -> AsyncIterator[None]:
        lock = self._learning.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._learning.pop(key, None)

    async def sources(self, audience: Audience) -> tuple[Source, ...]:
        """See `KnowledgeBase.sources`."""
        return await self._registry.sources(audience.scopes)

    async def find(self, reference: str, audience: Audience) -> Source:
        """See `KnowledgeBase.find`."""
        return find(reference, await self._registry.sources(audience.scopes))

    async def show(self, source: Source) -> tuple[Passage, ...]:
        """See `KnowledgeBase.show`."""
        return tuple(passage(chunk, 0.0) for chunk in await self._index.chunks(source.id))

    async def remove(self, source: Source) -> Removed:
        """See `KnowledgeBase.remove`. The record goes last, so that a failed removal can be tried again."""
        before = await self._index.count(source.id)
        await self._index.delete(source.id)
        after = await self._index.count(source.id)
        if after == 0:
            await self._registry.delete_source(source.id)
        return Removed(source=source, chunks_before=before, chunks_after=after)

    async def rebuild(self, progress: OnProgress) -> int:
        """See `KnowledgeBase.rebuild`."""
        return await self._index.rebuild(progress)

    async def health(self) -> Sequence[Health]:
        """See `KnowledgeBase.health`."""
        return await self._index_health(), await self._encoder_health()

    async def _index_health(self) -> Health:
        try:
            total = await self._index.total()
        except MissingExtra as error:
            return Health(name="index", ok=False, detail=str(error), fix="pip install 'chinwag[knowledge]'")
        except EncoderChanged as error:
            return Health(name="index", ok=False, detail=str(error), fix="chinwag knowledge rebuild")
        except KnowledgeError as error:
            return Health(name="index", ok=False, detail=str(error), fix="See CHINWAG_QDRANT_URL and the data folder.")
        return Health(name="index", ok=True, detail=f"{total:,} chunks")

    async def _encoder_health(self) -> Health:
        try:
            await self._index.encode(["health"], "query")
        except (KnowledgeError, MissingExtra) as error:
            return Health(name="encoder", ok=False, detail=str(error), fix="pip install 'chinwag[knowledge]'")
        return Health(name="encoder", ok=True, detail=f"{NAME}, {DIMENSION} numbers")


def passage(chunk: Stored, score: float) -> Passage:
    """A stored chunk as the rest of the bot sees it."""
    return Passage(
        id=chunk.id,
        source_id=chunk.source_id,
        source=chunk.source,
        title=chunk.title,
        text=chunk.text,
        score=score,
        page=chunk.page,
        heading=chunk.heading,
    )


def new_id(uri: str, scope: Scope, known: Sequence[Source]) -> str:
    """Eight hexadecimal digits, the same for the same source in the same scope; longer if they are taken."""
    digits, taken = hashlib.sha256(f"{scope}|{uri}".encode()).hexdigest(), {source.id for source in known}
    return next(digits[:size] for size in range(8, 65) if digits[:size] not in taken)


def find(reference: str, sources: Sequence[Source]) -> Source:
    """The one source that is meant. Raises `SourceNotFound`."""
    wanted = reference.strip()
    exact = [one for one in sources if wanted in (one.id, one.uri, one.title, PurePosixPath(one.uri).name)]
    begins = [one for one in sources if len(wanted) >= 2 and one.id.startswith(wanted.lower())]
    found = exact or begins
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{one.id} ({one.title})" for one in found)
        raise SourceNotFound(f"{wanted!r} may be any of {ids}. Give the id.")
    raise SourceNotFound(f"No source here is called {wanted!r}. List them with: knowledge list")


@contextlib.asynccontextmanager
async def open_library(options: KnowledgeOptions, registry: SourceRegistry) -> AsyncIterator[Library]:
    """The knowledge in Qdrant, embedded or by URL. Nothing is started before it is needed."""
    host = Host(None if options.qdrant_url else index_folder(options.data_dir))
    index = Index(host, url=options.qdrant_url, api_key=options.qdrant_api_key)
    try:
        yield Library(index, registry, Reader(options), Extractor())
    finally:
        await index.close()
        await host.close()
