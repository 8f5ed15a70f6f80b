"""The event reader, against any cutting of the bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sse import EventReader

texts = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=40)
newlines = st.sampled_from(["\n", "\r\n"])
spaces = st.sampled_from(["data:", "data: "])
noise = st.sampled_from(["", ": keep-alive{n}{n}", "event: message{n}", "id: 7{n}", "retry: 100{n}", ":{n}"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream as servers write it, and the data of its events."""
    wire, expected = "", []
    for text in draw(st.lists(texts, max_size=8)):
        newline, prefix = draw(newlines), draw(spaces)
        if prefix == "data:" and text.startswith(" "):
            prefix = "data: "
        wire += draw(noise).format(n=newline) + f"{prefix}{text}{newline}{newline}"
        expected.append(text.encode())
    return wire.encode(), expected


def read(chunks: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.close()


@given(streams(), st.lists(st.integers(0, 400), max_size=30))
def test_the_cutting_into_chunks_changes_nothing(stream: tuple[bytes, list[bytes]], cuts: list[int]) -> None:
    """The same events come out in the same order, wherever the network cut the bytes."""
    wire, expected = stream
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})

    assert read([wire[a:b] for a, b in itertools.pairwise(edges)]) == expected


@given(streams())
def test_byte_by_byte_is_the_same(stream: tuple[bytes, list[bytes]]) -> None:
    """Even when every byte comes alone."""
    wire, expected = stream

    assert read([wire[n : n + 1] for n in range(len(wire))]) == expected


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b'data: {"a":1}\n\ndata: {"a":2}\n\n', [b'{"a":1}', b'{"a":2}']),
        (b'data: {"a":1}\r\n\r\n', [b'{"a":1}']),
        (b": ping\n\n", []),
        (b"\n\n\n", []),
        (b"data: end without a blank line", [b"end without a blank line"]),
        ('data: {"t":"\u2028\u2029\u0085"}\n\n'.encode(), ['{"t":"\u2028\u2029\u0085"}'.encode()]),
    ],
)
def test_what_servers_write(wire: bytes, expected: list[bytes]) -> None:
    """Lines of one event are joined, comments dropped, lines end only at LF."""
    assert read([wire]) == expected
