"""From a document's blocks to chunks that are found and read on their own. Pure: no files, no models.

A chunk never crosses a heading, a lead-in ("Helps pay for:", "What do I need?") stays with what it introduces, and
tables and code stay whole where they fit. Chunks are small on purpose: the embedded model has room for about 400
tokens of retrieved text, and four sections of one document must fit into it together.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Count = Callable[[str], int]
"""How many tokens a text has, by the encoder's own count."""

PATH_MARK = " > "


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A paragraph, heading, table or piece of code as it stands in the document. `level` is for headings."""

    kind: Literal["heading", "text", "table", "code"]
    text: str
    page: int | None = None
    level: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What was read out of a file; `pages` is None where the format has none."""

    title: str
    blocks: tuple[Block, ...]
    pages: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of a document. `heading` is the path to it; `text` opens with the last heading of the path."""

    text: str
    heading: str
    page: int | None
    position: int
    tokens: int

    @property
    def indexed(self) -> str:
        """What is encoded and searched: the whole path, then the text without its repeated heading."""
        leaf = self.heading.rpartition(PATH_MARK)[2]
        return f"{self.heading}\n{self.text[len(leaf) :].lstrip()}" if self.heading else self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """In tokens, the heading line included. `whole`: up to this a table or code is not split."""

    most: int = 90
    whole: int = 200
    heading: int = 40


@dataclass(frozen=True, slots=True)
class _Unit:
    text: str
    page: int | None
    tokens: int
    leads: bool = False
    joint: str = "\n"
    """What stands between this and the unit before it."""
    block: int = 0
    """The block that it came from: rows and sentences of one block stay together if they can."""


def chunk(document: Document, count: Count, sizes: Sizes | None = None) -> list[Chunk]:
    """Cut a document into chunks in reading order. No text is lost; none exceeds its size but a single long word."""
    sizes = sizes or Sizes()
    chunks: list[Chunk] = []
    for path, blocks in _sections(document.blocks):
        leaf = _shortened(path[-1], count, sizes.heading) if path else ""
        title = PATH_MARK.join((*path[:-1], leaf)) if path else ""
        room = sizes.most - (count(leaf) if leaf else 0)
        units = [
            replace(unit, block=number)
            for number, block in enumerate(blocks)
            for part in _lines(block)
            for unit in _units(part, count, room, sizes)
        ]
        for packed in _packed(units, room):
            body = packed[0].text + "".join(unit.joint + unit.text for unit in packed[1:])
            text = f"{leaf}\n{body}".strip()
            chunks.append(
                Chunk(text=text, heading=title, page=packed[0].page, position=len(chunks), tokens=count(text))
            )
    return chunks


def _sections(blocks: Iterable[Block]) -> Iterator[tuple[tuple[str, ...], list[Block]]]:
    """Runs of blocks under one path of headings. A heading with nothing under it counts as text of its parent."""
    path: list[Block] = []
    body: list[Block] = []
    bare = False
    for block in blocks:
        if block.kind != "heading":
            body.append(block)
            bare = False
            continue
        if bare and block.level <= path[-1].level:
            body.append(replace(path.pop(), kind="text"))
        if body:
            yield tuple(heading.text for heading in path), body
            body = []
        while path and path[-1].level >= block.level:
            path.pop()
        path.append(block)
        bare = True
    if bare:
        body.append(replace(path.pop(), kind="text"))
    if body:
        yield tuple(heading.text for heading in path), body


def _lines(block: Block) -> list[Block]:
    """A text's lines as blocks of their own: a line break that survived reading was meant."""
    if block.kind != "text" or "\n" not in block.text:
        return [block]
    return [replace(block, text=line) for line in block.text.splitlines() if line.strip()]


def _units(block: Block, count: Count, room: int, sizes: Sizes) -> list[_Unit]:
    """A block as pieces that fit: whole if it can be, else its lines, sentences, words."""
    tokens = count(block.text)
    leads = block.kind == "text" and block.text.rstrip("*_ ").endswith((":", "?"))
    if tokens <= room or (block.kind in ("table", "code") and tokens <= sizes.whole):
        return [_Unit(block.text, block.page, tokens, leads)]
    joint = " " if block.kind == "text" else "\n"
    pieces = [piece for piece in _pieces(block, count, room) if piece.strip()]
    return [_Unit(piece, block.page, count(piece), joint=joint if n else "\n") for n, piece in enumerate(pieces)]


def _pieces(block: Block, count: Count, room: int) -> Iterator[str]:
    if block.kind == "table":
        yield from _table_parts(block.text.splitlines(), count, room)
        return
    parts = block.text.splitlines() if block.kind == "code" else _sentences(block.text)
    for part in parts:
        if count(part) <= room:
            yield part
        else:
            yield from _filled(re.findall(r"\s*\S+\s*", part), count, room, joint="")


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n", text) if part.strip()]


def _table_parts(lines: Sequence[str], count: Count, room: int) -> Iterator[str]:
    """Rows in groups, each under the table's own header."""
    header = lines[:2] if len(lines) > 2 and re.fullmatch(r"[\s|:\-]+", lines[1]) else []
    top = "\n".join(header)
    left = max(room - (count(top) if header else 0), room // 3)
    for rows in _filled(lines[len(header) :], count, left, joint="\n"):
        yield f"{top}\n{rows}" if header else rows


def _filled(parts: Sequence[str], count: Count, room: int, *, joint: str) -> Iterator[str]:
    """Parts joined as long as they fit; a part that alone is too long is cut by characters."""
    held: list[str] = []
    size = 0
    for part in (cut for whole in parts for cut in _cut(whole, count, room)):
        tokens = count(part)
        if held and size + tokens > room:
            yield joint.join(held)
            held, size = [], 0
        held.append(part)
        size += tokens
    if held:
        yield joint.join(held)


def _cut(text: str, count: Count, room: int) -> Iterator[str]:
    tokens = count(text)
    if tokens <= room or len(text) < 2:
        yield text
        return
    step = max(1, len(text) * room // (tokens + 1))
    for start in range(0, len(text), step):
        yield text[start : start + step]


def _packed(units: Sequence[_Unit], room: int) -> Iterator[Sequence[_Unit]]:
    """The cheapest cut into groups within `room`: of about equal size, and broken where a break hurts least."""
    total = sum(unit.tokens for unit in units)
    goal = total / max(1, math.ceil(total / room))
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(units) + 1):
        options, size = [], 0
        for start in range(end - 1, -1, -1):
            size += units[start].tokens
            if size > room and start < end - 1:
                break
            small = max(0.0, 1 - size / goal)
            options.append((best[start][0] + small * small + _break_cost(units, end), start))
        best.append(min(options))
    ends = [len(units)]
    while ends[-1]:
        ends.append(best[ends[-1]][1])
    for end, start in zip(ends[-2::-1], ends[::-1], strict=False):
        yield units[start:end]


def _break_cost(units: Sequence[_Unit], at: int) -> float:
    """How much it hurts to begin a chunk at this unit."""
    if at == len(units):
        return 0
    before = units[at - 1]
    inside = 0.0 if units[at].block != before.block else 0.3 if before.text.endswith((".", "!", "?", ")")) else 1.0
    return inside + (4 if before.leads else 0)


def _shortened(heading: str, count: Count, most: int) -> str:
    """A heading that fits; a paragraph that poses as one is cut at a word."""
    words = heading.split()
    while len(words) > 1 and count(" ".join(words)) > most:
        words = words[: max(1, len(words) * 3 // 4)]
    return " ".join(words)[: most * 8]
