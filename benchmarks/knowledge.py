"""How fast documents are learned and found, and where the time goes.

    python -m benchmarks.knowledge [FILE ...]

Three tables: learning real files (the ones named, or two that are made here), with the share of each stage; filling
the index to 10,000 chunks; and searching it. The 10,000 are random vectors with made-up words, because encoding as
many texts would take ten minutes and say no more about the index; the search encodes its question for real. Compare
figures within one run only: they depend on the machine and on what else it does.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bot.messages import Audience, NewSource, Progress, Scope
from bot.ports import KnowledgeOptions
from knowledge.chunks import Chunk, Document
from knowledge.embed import DIMENSION, Kind
from knowledge.extract import Extractor
from knowledge.host import Host
from knowledge.index import Candidate, Encoded, Index, Owner, index_folder
from knowledge.library import Library
from knowledge.memory import MemoryRegistry
from knowledge.sources import Reader

CHUNKS = 10_000
SOURCES = 100
SEARCHES = 100
SCOPE = Scope(kind="channel", key="console/local/benchmark")
QUESTIONS = (
    "What is the income limit for an individual?",
    "How do I apply?",
    "Which word comes after w77?",
    "Wie hoch ist die Grenze?",
    "Who pays for w12 and w345?",
)


class Timed(Index):
    """An index that adds up the seconds of each stage."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    async def encode(self, texts: Sequence[str], kind: Kind) -> list[Encoded]:
        began = time.perf_counter()
        result = await super().encode(texts, kind)
        self.seconds[f"encode {kind}"] += time.perf_counter() - began
        return result

    async def chunk(self, document: Document) -> list[Chunk]:
        began = time.perf_counter()
        result = await super().chunk(document)
        self.seconds["chunk"] += time.perf_counter() - began
        return result

    async def upsert(self, owner: Owner, chunks: Sequence[Chunk], vectors: Sequence[Encoded]) -> None:
        began = time.perf_counter()
        await super().upsert(owner, chunks, vectors)
        self.seconds["upsert"] += time.perf_counter() - began

    async def search(self, query: Encoded, scopes: Iterable[str], limit: int) -> list[Candidate]:
        began = time.perf_counter()
        result = await super().search(query, scopes, limit)
        self.seconds["search"] += time.perf_counter() - began
        return result


def made_up(folder: Path) -> list[Path]:
    """A long and a short document, for whoever has none at hand."""
    pick, files = random.Random(3), []
    for name, sections in (("handbook.md", 40), ("note.md", 3)):
        parts = []
        for number in range(sections):
            words = " ".join(f"w{pick.randrange(900)}" for _ in range(90))
            parts.append(f"## Section {number}\n\nThis part is about w{number}. {words}.\n")
        files.append(folder / name)
        files[-1].write_text(f"# {name}\n\n" + "\n".join(parts))
    return files


async def learn(library: Library, index: Timed, files: Sequence[Path]) -> None:
    """Learn some files and print what each stage took."""
    await asyncio.gather(index.encode(["so that the encoder is loaded"], "query"), index.ready())
    index.seconds.clear()
    began, chunks = time.perf_counter(), 0
    marks: defaultdict[str, float] = defaultdict(float)
    since = [("", began)]

    def note(progress: Progress) -> None:
        (stage, start), now = since[0], time.perf_counter()
        marks[stage] += now - start
        since[0] = (progress.stage, now)

    for file in files:
        chunks += (await library.add(NewSource(uri=str(file)), SCOPE, added_by="", progress=note)).source.chunks
    total = time.perf_counter() - began
    extract = marks["extract"] - index.seconds["chunk"]
    stages = {
        "fetch": marks["fetch"],
        "extract (a process each)": extract,
        "chunk": index.seconds["chunk"],
        "encode": index.seconds["encode passage"],
        "upsert": index.seconds["upsert"],
    }
    stages["rest: counts, ledger, flush"] = total - sum(stages.values())
    print(f"\n## Learning {len(files)} files, {chunks} chunks: {total:.1f} s")
    print(f"{len(files) / total:.2f} documents/s, {chunks / total:.1f} chunks/s\n")
    _table(stages, total)


async def fill(index: Timed, registry_scope: Scope) -> None:
    """Put random chunks until there are ten thousand."""
    pick, per_source = random.Random(1), CHUNKS // SOURCES
    index.seconds.clear()
    began = time.perf_counter()
    for number in range(SOURCES):
        owner = Owner(
            source_id=f"made{number}", source=f"{number}.md", title="", digest=str(number), scope=str(registry_scope)
        )
        chunks, vectors = [], []
        for position in range(per_source):
            words = [pick.randrange(5000) for _ in range(60)]
            text = " ".join(f"w{word}" for word in words)
            chunks.append(Chunk(text=text, heading="", page=None, position=position, tokens=60))
            dense = [pick.gauss(0, 1) for _ in range(DIMENSION)]
            vectors.append(Encoded(dense=dense, terms=dict.fromkeys(words, 1.0)))
        await index.upsert(owner, chunks, vectors)
        await index.make_live(owner.source_id, owner.digest)
    total = time.perf_counter() - began
    print(f"\n## Filling up to {await index.total():,} chunks with random vectors: {total:.1f} s")
    print(f"{CHUNKS / index.seconds['upsert']:,.0f} chunks/s in the index itself, JSON and loopback included")


async def search(library: Library, index: Timed) -> None:
    """Ask, and print the middle and the slow end of the waits."""
    audience = Audience(scopes=frozenset({str(SCOPE)}))
    index.seconds.clear()
    waits = []
    for number in range(SEARCHES):
        began = time.perf_counter()
        await library.search(QUESTIONS[number % len(QUESTIONS)], audience, 6)
        waits.append((time.perf_counter() - began) * 1000)
    waits.sort()
    print(f"\n## Searching, {SEARCHES} questions one after another")
    print(f"p50 {statistics.median(waits):.1f} ms, p90 {waits[int(len(waits) * 0.9)]:.1f} ms\n")
    stages = {"encode the question": index.seconds["encode query"], "query Qdrant": index.seconds["search"]}
    stages["choose, ledger"] = sum(waits) / 1000 - sum(stages.values())
    _table(stages, sum(waits) / 1000)


def _table(stages: Mapping[str, float], total: float) -> None:
    print("| stage | seconds | share |\n| --- | --- | --- |")
    for name, seconds in stages.items():
        print(f"| {name} | {seconds:.2f} | {seconds / total:.0%} |")


async def main(files: Sequence[Path]) -> None:
    """Measure everything in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        host = Host(index_folder(folder))
        index = Timed(host)
        library = Library(index, MemoryRegistry(), Reader(KnowledgeOptions(data_dir=folder)), Extractor())
        try:
            await learn(library, index, files or made_up(folder))
            await fill(index, SCOPE)
            await search(library, index)
        finally:
            await index.close()
            await host.close()


if __name__ == "__main__":
    asyncio.run(main([Path(name) for name in sys.argv[1:]]))
