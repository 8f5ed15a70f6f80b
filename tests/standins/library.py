"""One embedded knowledge for all tests of a session: the encoder takes seconds to load, so it is loaded once."""

import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bot.messages import Audience, NewSource, Progress, Scope
from bot.ports import KnowledgeOptions
from knowledge.extract import Extractor
from knowledge.host import Host
from knowledge.index import Index
from knowledge.library import Library
from knowledge.memory import MemoryRegistry
from knowledge.sources import Reader

SHARED_DATA = Path(__file__).parents[2] / "../shared/data"
MEDICARE = SHARED_DATA / "medicare_programs.pdf"


@dataclass(frozen=True, slots=True)
class Shared:
    """A running child with its index, and a library over them."""

    host: Host
    index: Index
    registry: MemoryRegistry
    library: Library


_held: list[tuple[Shared, contextlib.AsyncExitStack, list[int]]] = []


@contextlib.asynccontextmanager
async def shared_library() -> AsyncIterator[Shared]:
    """The one library; the last to leave ends its process."""
    if not _held:
        stack = contextlib.AsyncExitStack()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = Host(folder / "knowledge")
        index = Index(host)
        stack.push_async_callback(host.close)
        stack.push_async_callback(index.close)
        registry = MemoryRegistry()
        options = KnowledgeOptions(data_dir=folder, allow_private_addresses=True, max_file_bytes=5_000_000)
        library = Library(index, registry, Reader(options), Extractor())
        _held.append((Shared(host, index, registry, library), stack, [0]))
    shared, stack, users = _held[0]
    users[0] += 1
    try:
        yield shared
    finally:
        users[0] -= 1
        if not users[0]:
            _held.clear()
            await stack.aclose()


def fresh_scope(kind: str = "channel") -> Scope:
    """A scope that no other test uses."""
    return Scope(kind=kind, key=f"console/local/{uuid.uuid4().hex}")  # type: ignore[arg-type]


def readers(*scopes: Scope) -> Audience:
    """Those who may read exactly these."""
    return Audience(scopes=frozenset(map(str, scopes)))


def text(content: str, uri: str = "notes.md") -> NewSource:
    """A text that somebody handed over."""
    return NewSource(uri=uri, content=content.encode())


def unseen(_progress: Progress) -> None:
    """Progress that nobody watches."""
