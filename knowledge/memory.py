"""Knowledge in memory: no index, no models, gone at the end. For tests, and for trying out.

It keeps every promise of the port, but finds by words alone and knows no synonyms.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

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
from knowledge.chunks import chunk
from knowledge.extract import Extractor
from knowledge.library import find, new_id
from knowledge.sources import Reader

FLOOR = 0.3
"""The share of a question's rare words that a passage must hold."""

_STOP_WORDS = """
a an and are as at be by do does for from how i in is it me my of on or that the their there these they this to was we
what when where which who why will with you your der die das und ist ein eine was wer wie wo für von zu
"""
_STOP = frozenset(_STOP_WORDS.split())


class MemoryRegistry:
    """A `SourceRegistry` in memory."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    async def put_source(self, source: Source) -> None:
        """See `SourceRegistry.put_source`."""
        self._sources[source.id] = source

    async def sources(self, scopes: frozenset[str]) -> tuple[Source, ...]:
        """See `SourceRegistry.sources`."""
        found = [source for source in self._sources.values() if str(source.scope) in scopes]
        return tuple(sorted(found, key=lambda source: source.learned_at, reverse=True))

    async def count_sources(self, scopes: frozenset[str]) -> int:
        """See `SourceRegistry.count_sources`."""
        return len(await self.sources(scopes))

    async def delete_source(self, source_id: str) -> None:
        """See `SourceRegistry.delete_source`."""
        self._sources.pop(source_id, None)


class MemoryKnowledge:
    """A `KnowledgeBase` in memory."""

    def __init__(self, registry: SourceRegistry, reader: Reader, extractor: Extractor) -> None:
        self._registry, self._reader, self._extractor = registry, reader, extractor
        self._passages: dict[str, tuple[Passage, ...]] = {}

    async def search(self, query: str, audience: Audience, k: int) -> Retrieval:
        """See `Retriever.search`."""
        sources = await self._registry.sources(audience.scopes)
        readable = [passage for source in sources for passage in self._passages.get(source.id, ())]
        wanted, texts = _words(query), [_words(f"{passage.title} {passage.text}") for passage in readable]
        weight = {word: math.log(1 + (len(texts) + 1) / (1 + sum(word in text for text in texts))) for word in wanted}
        total = sum(weight.values())
        scored = [
            replace(passage, score=sum(weight[word] for word in wanted & text) / total)
            for passage, text in zip(readable, texts, strict=True)
            if total
        ]
        best = sorted((found for found in scored if found.score >= FLOOR), key=lambda found: -found.score)
        return Retrieval(passages=tuple(best[:k]), sources_searched=len(sources))

    async def add(self, source: NewSource, scope: Scope, *, added_by: str, progress: OnProgress) -> Learned:
        """See `KnowledgeBase.add`."""
        progress(Progress(stage="fetch"))
        raw, uri = await self._reader.read(source), self._reader.address(source)
        digest = hashlib.sha256(raw.content).hexdigest()
        known = await self._registry.sources(frozenset({str(scope)}))
        same = next((one for one in known if one.digest == digest and one.id in self._passages), None)
        if same:
            return Learned(source=same, new=False)
        progress(Progress(stage="extract"))
        document = await self._extractor.extract(raw)
        before = next((one for one in known if one.uri == uri), None)
        chunks = chunk(document, lambda text: len(text.split()))
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
        progress(Progress(stage="index", done=len(chunks), total=len(chunks)))
        passages = tuple(
            Passage(
                id=f"{learned.id}-{one.position}",
                source_id=learned.id,
                source=uri,
                title=learned.title,
                text=one.text,
                score=0.0,
                page=one.page,
                heading=one.heading,
            )
            for one in chunks
        )
        await self._registry.put_source(learned)
        self._passages[learned.id] = passages
        return Learned(source=learned, new=True, replaced=before is not None)

    async def sources(self, audience: Audience) -> tuple[Source, ...]:
        """See `KnowledgeBase.sources`."""
        return await self._registry.sources(audience.scopes)

    async def find(self, reference: str, audience: Audience) -> Source:
        """See `KnowledgeBase.find`."""
        return find(reference, await self._registry.sources(audience.scopes))

    async def show(self, source: Source) -> tuple[Passage, ...]:
        """See `KnowledgeBase.show`."""
        return self._passages.get(source.id, ())

    async def remove(self, source: Source) -> Removed:
        """See `KnowledgeBase.remove`."""
        gone = self._passages.pop(source.id, ())
        await self._registry.delete_source(source.id)
        return Removed(source=source, chunks_before=len(gone), chunks_after=len(self._passages.get(source.id, ())))

    async def rebuild(self, progress: OnProgress) -> int:
        """See `KnowledgeBase.rebuild`. There is no encoder here that could have changed."""
        progress(Progress(stage="embed", done=0, total=0))
        return 0

    async def health(self) -> Sequence[Health]:
        """See `KnowledgeBase.health`."""
        total = sum(map(len, self._passages.values()))
        index = Health(name="index", ok=True, detail=f"{total:,} chunks in memory, gone at the end")
        return index, Health(name="encoder", ok=True, detail="none: finds by words")


def _words(text: str) -> set[str]:
    """Words without their commonest endings, stop words left out."""
    found = re.findall(r"\w+", text.lower())
    return {re.sub(r"(ies|es|s|en|e)$", "", word) if len(word) > 4 else word for word in found if word not in _STOP}


@contextlib.asynccontextmanager
async def open_memory(options: KnowledgeOptions, registry: SourceRegistry) -> AsyncIterator[MemoryKnowledge]:
    """Knowledge that lasts as long as the process."""
    yield MemoryKnowledge(registry, Reader(options), Extractor())
