"""Chunking: what holds for every document, and how the small decisions fall."""

import re

from hypothesis import given
from hypothesis import strategies as st

from knowledge.chunks import Block, Chunk, Document, Sizes, chunk

SIZES = Sizes(most=20, whole=40, heading=6)

WORDS = st.text(alphabet="abcdefgh.?:é我", min_size=1, max_size=12)
LINES = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)
TEXTS = st.lists(LINES, min_size=1, max_size=4).map("\n".join)
BLOCKS = st.one_of(
    st.builds(Block, kind=st.sampled_from(["text", "code"]), text=TEXTS, page=st.integers(1, 9)),
    st.builds(Block, kind=st.just("heading"), text=LINES, level=st.integers(1, 4)),
)
DOCUMENTS = st.lists(BLOCKS, max_size=12).map(lambda blocks: Document(title="", blocks=tuple(blocks)))


def words(text: str) -> int:
    """A count of tokens that nobody needs a model for: one for every four letters of a word."""
    return sum(-(-len(word) // 4) for word in text.split())


def body(piece: Chunk) -> str:
    leaf = piece.heading.rpartition(" > ")[2]
    assert piece.text.startswith(leaf)
    return piece.text[len(leaf) :]


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(DOCUMENTS)
def test_no_text_is_lost(document: Document) -> None:
    """The bodies of all chunks, joined, are the bodies of the document, letter for letter and in order."""
    told = "".join(bare(block.text) for block in document.blocks if block.kind != "heading")
    kept = bare("".join(body(piece) for piece in chunk(document, words, SIZES)))

    position = 0
    for letter in told:  # headings without a text of their own stand in between
        position = kept.index(letter, position) + 1
    if all(block.kind != "heading" for block in document.blocks):
        assert kept == told


@given(DOCUMENTS)
def test_every_heading_stands_somewhere(document: Document) -> None:
    """A heading is in the path of what follows it; one that nothing follows is text."""
    pieces = chunk(document, words, SIZES)
    everything = bare("".join(piece.heading + piece.text for piece in pieces))

    for block in document.blocks:
        if block.kind == "heading":
            first = block.text.split()[0]
            assert bare(first)[:8] in everything


@given(DOCUMENTS)
def test_no_chunk_exceeds_its_size(document: Document) -> None:
    """Each chunk fits, or holds code that is kept whole; a single cut word may be off by its rounding."""
    for piece in chunk(document, words, SIZES):
        assert piece.tokens <= SIZES.whole + SIZES.heading
        code = any(block.kind == "code" and bare(body(piece)) in bare(block.text) for block in document.blocks)
        if not code:
            assert piece.tokens <= SIZES.most + 4


@given(DOCUMENTS)
def test_positions_count_up(document: Document) -> None:
    """Chunks are numbered from 0 in reading order."""
    assert [piece.position for piece in chunk(document, words, SIZES)] == list(
        range(len(chunk(document, words, SIZES)))
    )


def test_chunks_do_not_cross_headings() -> None:
    """Two short sections are two chunks, each under its own path."""
    document = Document(
        title="",
        blocks=(
            Block(kind="heading", text="Programs", level=1),
            Block(kind="heading", text="One", level=2),
            Block(kind="text", text="first"),
            Block(kind="heading", text="Two", level=2),
            Block(kind="text", text="second"),
        ),
    )

    pieces = chunk(document, words, SIZES)

    assert [(piece.heading, piece.text) for piece in pieces] == [
        ("Programs > One", "One\nfirst"),
        ("Programs > Two", "Two\nsecond"),
    ]
    assert pieces[0].indexed == "Programs > One\nfirst"


def test_a_lead_in_stays_with_what_it_introduces() -> None:
    """A chunk ends before "You need:", not after it."""
    lines = ("aaaa " * 12, "You need:", "bread", "and butter " * 3)
    document = Document(title="", blocks=tuple(Block(kind="text", text=line.strip()) for line in lines))

    pieces = chunk(document, words, SIZES)

    assert not any(piece.text.endswith("You need:") for piece in pieces)


def test_rows_of_a_block_stay_together() -> None:
    """Where a section must be cut, it is cut between blocks rather than inside one."""
    rows = "Individual $1,235 $9,090\nMarried couple $1,663 $13,630"
    document = Document(
        title="",
        blocks=(Block(kind="text", text="Helps pay for part A and part B."), Block(kind="text", text=rows)),
    )

    pieces = chunk(document, words, Sizes(most=18, whole=40))

    assert [piece.text for piece in pieces] == ["Helps pay for part A and part B.", rows]


def test_a_long_table_is_cut_under_its_own_header() -> None:
    """Every part of a table begins with the table's header."""
    header = "| name | price |\n| --- | --- |"
    rows = "\n".join(f"| thing {number} | {number} |" for number in range(30))
    document = Document(title="", blocks=(Block(kind="table", text=f"{header}\n{rows}"),))

    pieces = chunk(document, words, SIZES)

    assert len(pieces) > 2
    assert all(piece.text.startswith(header) for piece in pieces)
    assert all(f"| thing {number} |" in "".join(piece.text for piece in pieces) for number in range(30))


def test_a_table_that_fits_is_whole() -> None:
    """A table larger than a chunk, but not too large, stays in one piece."""
    table = "| a | b |\n| --- | --- |\n" + "\n".join(f"| {number} | x |" for number in range(6))
    document = Document(title="", blocks=(Block(kind="text", text="before"), Block(kind="table", text=table)))

    assert table in [piece.text for piece in chunk(document, words, SIZES)]


def test_a_chunk_knows_the_page_it_begins_on() -> None:
    """The page is that of the chunk's first block."""
    document = Document(
        title="",
        blocks=(Block(kind="text", text="aaaa " * 18, page=3), Block(kind="text", text="bbbb " * 18, page=4)),
    )

    assert [piece.page for piece in chunk(document, words, SIZES)] == [3, 4]
