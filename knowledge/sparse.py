"""Texts to BM25 term vectors, by the tokenizer and stemmers of Qdrant's own engine.

The one place where they are made, for passages and for queries, for the embedded index and for a server: the same
text must get the same numbers for ever, so a change here is a new `NAME`, which the index refuses to mix.
"""

from typing import TYPE_CHECKING, Any

from bot.errors import MissingExtra
from knowledge.language import is_unspaced, language_of

if TYPE_CHECKING:
    from qdrant_edge import Bm25

NAME = "bm25-edge-1"
AVERAGE_WORDS = 50
"""The average length that BM25 measures a chunk against; ours have about 70 tokens, 50 words."""

Terms = dict[int, float]


class Sparse:
    """BM25 vectors for passages and queries."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, bool], Bm25] = {}

    def passage(self, text: str) -> Terms:
        """Term weights of a passage, in its own language."""
        found = self._model(language_of(text), unspaced=is_unspaced(text)).embed_document(text)
        return dict(zip(found.indices, found.values, strict=True))

    def query(self, text: str) -> Terms:
        """The terms of a query, each with weight 1, in its own language; English when nothing tells."""
        found = self._model(language_of(text), unspaced=is_unspaced(text)).embed_query(text)
        return dict(zip(found.indices, found.values, strict=True))

    def _model(self, language: str, *, unspaced: bool) -> "Bm25":
        key = (language, unspaced)
        if key not in self._models:
            try:
                from qdrant_edge import Bm25, Bm25Config, TokenizerType
            except ImportError as error:
                raise MissingExtra.named("knowledge", "Searching the knowledge") from error
            options: dict[str, Any] = {"tokenizer": TokenizerType.Multilingual} if unspaced else {}
            self._models[key] = Bm25(Bm25Config(language=language, avg_len=AVERAGE_WORDS, **options))
        return self._models[key]
