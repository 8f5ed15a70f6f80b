"""Markdown and plain text as blocks."""

from knowledge.markdown import blocks


def kinds(text: str) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks(text)]


def test_headings_have_levels() -> None:
    """Hashes and underlines are headings; a lone bold line is one of the lowest level."""
    found = blocks("# One\n\nTwo\n---\n\n**Three**\n\ntext")

    assert [(block.text, block.level) for block in found if block.kind == "heading"] == [
        ("One", 1),
        ("Two", 2),
        ("Three", 6),
    ]


def test_code_and_tables_are_kept_as_they_are() -> None:
    """A fence keeps its lines, hashes and stars; a table keeps its rows."""
    code = "```python\n# not a heading\n\nx = 2 ** 3\n```"
    table = "| a | b |\n|---|---|\n| 1 | **2** |"

    assert kinds(f"{code}\n\n{table}") == [("code", code), ("table", table)]


def test_an_unclosed_fence_ends_with_the_text() -> None:
    """Half a file is still read to its end."""
    assert kinds("```\nx = 1") == [("code", "```\nx = 1")]


def test_links_and_emphasis_leave_their_words() -> None:
    """Addresses, stars and pictures go; what a reader reads stays."""
    assert kinds("See [the **docs**](https://example.org/a) now ![logo](x.png)") == [("text", "See the docs now")]


def test_lines_broken_for_width_are_joined() -> None:
    """A paragraph of a text file that was wrapped at 72 flows again; a list keeps its lines."""
    wrapped = (
        "The quick brown fox jumps over the lazy dog and then goes home to its\n"
        "cubs, which are asleep already.\n"
        "- one\n- two"
    )

    ((_, text),) = kinds(wrapped)

    assert text.splitlines()[0].endswith("home to its cubs, which are asleep already.")
    assert text.splitlines()[1:] == ["- one", "- two"]


def test_nothing_is_nothing() -> None:
    """Empty text has no blocks."""
    assert blocks("\n \n\t\n") == []
