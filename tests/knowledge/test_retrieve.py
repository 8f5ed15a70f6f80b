"""Which chunks are chosen: the floor, overviews, neighbours."""

from knowledge.index import Candidate, Stored
from knowledge.retrieve import FLOOR, asks_for_overview, choose, evidence

FOUR = "Which four programs are there?"


def candidate(
    text: str, *, cosine: float = 0.9, heading: str = "", position: int = 0, terms: frozenset[int] = frozenset()
) -> Candidate:
    leaf = heading.rpartition(" > ")[2]
    chunk = Stored(
        id=f"{heading}-{position}",
        text=f"{leaf}\n{text}".strip(),
        heading=heading,
        page=1,
        position=position,
        source_id="s",
        source="s.md",
        title="S",
        digest="d",
        scope="channel:x",
        language="english",
    )
    return Candidate(chunk=chunk, score=1 / (1 + position), cosine=cosine, terms=terms)


def test_below_the_floor_there_is_nothing() -> None:
    """A search whose best chunk is not good enough brings nothing at all."""
    weak = [candidate("Alpacas eat hay.", cosine=FLOOR - 0.01), candidate("They hum.", cosine=0.7, position=5)]

    assert choose("How is the weather on Mars?", frozenset({1, 2}), weak, 6) == []
    assert choose("anything", frozenset(), [], 6) == []


def test_words_of_the_question_lift_a_chunk_over_the_floor() -> None:
    """The same cosine is enough when the question's words stand in the chunk."""
    terms = frozenset({1, 2})
    close = FLOOR - 0.01

    assert choose("Who eats the hay?", terms, [candidate("Alpacas eat hay.", cosine=close, terms=terms)], 6)
    assert not choose("Who eats the hay?", terms, [candidate("Alpacas eat hay.", cosine=close)], 6)


def test_a_foreign_question_is_not_held_to_its_words() -> None:
    """Where the languages differ no word can match; that is not held against the chunk."""
    terms = frozenset({1, 2})
    chunk = candidate("Alpacas eat hay.", cosine=0.84)

    assert evidence("Was fressen die Alpakas und wie?", terms, chunk) > evidence(
        "What is the feed of them?", terms, chunk
    )


def test_far_weaker_chunks_are_left_out() -> None:
    """Beside a perfect match the merely related is noise."""
    found = choose(
        "Who eats hay?", frozenset(), [candidate("Alpacas.", cosine=0.95), candidate("x", cosine=0.86, position=5)], 6
    )

    assert [chunk.text for chunk in found] == ["Alpacas."]


def test_an_overview_reaches_every_section() -> None:
    """Asked for programs, each section that is called one is there, in the document's order, each by its beginning."""
    crowd = [candidate(f"more {n}", heading="All > Alpha Program", position=10 + n) for n in range(6)]
    names = ("Alpha", "Beta", "Gamma", "Delta")
    leads = [candidate("is for", heading=f"All > {name} Program", position=n) for n, name in enumerate(names)]

    found = choose(FOUR, frozenset(), [candidate("best", heading="All", position=99), *crowd, *reversed(leads)], 6)

    assert [chunk.text for chunk in found[:5]] == ["All\nbest", *(f"{name} Program\nis for" for name in names)]


def test_the_best_chunk_stays_first_in_an_overview() -> None:
    """ "Which program is for me?" is answered by the best chunk, even if it is not how its section begins."""
    leads = [candidate("is for", heading=f"All > {name} Program", position=n) for n, name in enumerate("ABC")]
    best = candidate("the answer", heading="All > B Program", position=7)

    found = choose("Which program is for me?", frozenset(), [best, *leads], 6)

    assert found[0].text == "B Program\nthe answer"
    assert [chunk.heading for chunk in found[:3]] == ["All > B Program", "All > A Program", "All > C Program"]


def test_neighbours_become_one_passage() -> None:
    """Two chunks in a row, of one section and page, are given as one, the heading said once."""
    first = candidate("begins here", heading="Food", position=3)
    second = candidate("and ends here", heading="Food", position=4)
    apart = candidate("elsewhere", heading="Food", position=9)

    found = choose("Who eats hay?", frozenset(), [second, first, apart], 6)

    assert [chunk.text for chunk in found] == ["Food\nbegins here\nand ends here", "Food\nelsewhere"]


def test_the_same_text_is_given_once() -> None:
    """A document that was learned for a channel and for its workspace does not repeat itself."""
    twins = [candidate("hay", position=0), candidate("hay", position=5), candidate("straw", position=9)]

    assert [chunk.text for chunk in choose("Who eats hay?", frozenset(), twins, 6)] == ["hay", "straw"]


def test_overviews_are_recognised() -> None:
    """Questions about several things, in some languages; and ordinary ones are not mistaken for them."""
    for question in (FOUR, "list all programs", "Welche Programme gibt es?", "How many kinds are there?"):
        assert asks_for_overview(question)
    for question in ("What is the income limit?", "How do I apply?", "Who pays?"):
        assert not asks_for_overview(question)
