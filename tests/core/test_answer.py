"""What reaches the person is clean, and what was streamed is what was meant."""

import itertools

import pytest
from hypothesis import given, settings, strategies

from bot.answer import AnswerFilter, without_citations


def filtered(pieces: list[str], *, passages: int = 2, speakers: tuple[str, ...] = ("Ann",)) -> str:
    clean = AnswerFilter(persona="Friend", speakers=speakers, passages=passages)
    return ("".join(map(clean.feed, pieces)) + clean.close()).rstrip()


PARTS = ("Ann", ":", "Friend", "<think>", "</think>")
CASES = [
    ("<think>hm [1]</think>Yes.", "Yes."),
    ("so be it</think>Yes.", "so be itYes."),
    ("Friend: hello", "hello"),
    ("**Friend:** hello", "hello"),
    ("Hello.\nAnn: and then?\nFriend: no", "Hello."),
    ("Hello.\n \n Ann: and then?", "Hello."),
    ("Many [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].", "Many [1][2]."),
    ("A fact [1]. Another [7].", "A fact [1]. Another."),
    ("Both [1, 2] and [2, 9].", "Both [1][2] and [2]."),
    ("```\nx = [9]\n``` then [9]", "```\nx = [9]\n``` then"),
    ("Use `rows[9]` here.", "Use `rows[9]` here."),
    ("See [9](https://example.org).", "See [9](https://example.org)."),
    ("a < b and [x] stays", "a < b and [x] stays"),
]


@pytest.mark.parametrize(("raw", "expected"), CASES)
def test_the_answer_is_clean(raw: str, expected: str) -> None:
    """Thinking, own name, other speakers and invented citations are gone; the rest is untouched."""
    assert filtered([raw]) == expected


@settings(deadline=None)
@given(strategies.sampled_from(CASES), strategies.lists(strategies.integers(0, 60), max_size=8))
def test_pieces_do_not_matter(case: tuple[str, str], cuts: list[int]) -> None:
    """However the stream is cut into pieces, the answer is the same."""
    raw, expected = case
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})

    assert filtered([raw[a:b] for a, b in itertools.pairwise(edges)]) == expected


@settings(deadline=None)
@given(
    strategies.lists(
        strategies.sampled_from(["`", "```", "[", "]", "1", "9", ",", "(", " ", "\n", "x", "*", *PARTS]), max_size=14
    ),
    strategies.lists(strategies.integers(0, 60), max_size=8),
)
def test_pieces_do_not_matter_whatever_is_written(parts: list[str], cuts: list[int]) -> None:
    """The same for any mixture of the signs that mean something."""
    raw = "".join(parts)
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})

    assert filtered([raw[a:b] for a, b in itertools.pairwise(edges)]).strip() == filtered([raw]).strip()


def test_the_cited_numbers_are_known() -> None:
    """Only passages that were given count as cited."""
    clean = AnswerFilter(persona="Friend", passages=2)
    clean.feed("One [2] and [5].")
    clean.close()

    assert clean.cited == {2}


def test_history_carries_no_markers() -> None:
    """In a later turn the numbers would mean other passages."""
    assert without_citations("A [1] and [2][3].") == "A and."
