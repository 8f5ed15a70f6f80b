"""Documents in, passages with sources out, scoped by who may read them."""

from contextlib import AbstractAsyncContextManager

from bot.ports import KnowledgeBase, KnowledgeOptions, OpenKnowledge, SourceRegistry


def _qdrant(options: KnowledgeOptions, registry: SourceRegistry) -> AbstractAsyncContextManager[KnowledgeBase]:
    from knowledge.library import open_library

    return open_library(options, registry)


def _memory(options: KnowledgeOptions, registry: SourceRegistry) -> AbstractAsyncContextManager[KnowledgeBase]:
    from knowledge.memory import open_memory

    return open_memory(options, registry)


KNOWLEDGE: dict[str, OpenKnowledge] = {"qdrant": _qdrant, "memory": _memory}
"""Kinds of knowledge by name. `memory` forgets at the end and finds by words alone."""
