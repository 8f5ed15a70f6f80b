"""Markdown, or plain text that may hold some, as blocks."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from knowledge.chunks import Block

_FENCE = re.compile(r"^\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"^\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"^\s{0,3}(=+|-+)\s*$")
_BOLD = re.compile(r"^(\*\*|__)(?P<text>[^*_]{2,80})\1$")
_TABLE = re.compile(r"^\s*\|.*\|\s*$")
_ITEM = re.compile(r"^\s*(?:[-*+•–]|\d+[.)]|[a-z][.)])\s")
_ENDED = re.compile(r"[.!?:;)\"”]\s*$")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def blocks(text: str) -> list[Block]:
    """The blocks of a text, in order. Images go, links keep their words, everything else stays."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").split("\n")
    widest = max(map(len, lines), default=0)
    return list(_blocks(lines, widest if 60 <= widest <= 140 else 0))


def flowing(lines: Sequence[str], width: int) -> str:
    """Lines of a text that was broken at `width`, joined again where the break was for the width alone."""
    text = lines[0]
    for line, following in itertools.pairwise(lines):
        wrapped = len(line) > width * 0.7 and not _ENDED.search(line) and not _ITEM.match(following)
        text += f" {following.strip()}" if wrapped else f"\n{following}"
    return text


def _blocks(lines: Sequence[str], width: int) -> Iterator[Block]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := _FENCE.match(line):
            end = _until(lines, at + 1, _closes(fence[1]))
            yield Block(kind="code", text="\n".join(lines[at : end + 1]))
            at = end + 1
        elif _TABLE.match(line):
            end = _until(lines, at, lambda other: not _TABLE.match(other))
            yield Block(kind="table", text="\n".join(lines[at:end]))
            at = end
        elif heading := _HEADING.match(line):
            if heading[2]:
                yield Block(kind="heading", text=_plain(heading[2]), level=len(heading[1]))
            at += 1
        elif line.strip():
            end = _until(lines, at, _ends_paragraph)
            yield from _paragraph(lines[at:end], width)
            at = end
        else:
            at += 1


def _until(lines: Sequence[str], at: int, met: Callable[[str], object]) -> int:
    while at < len(lines) and not met(lines[at]):
        at += 1
    return at


def _closes(mark: str) -> Callable[[str], bool]:
    return lambda line: line.strip().startswith(mark)


def _ends_paragraph(line: str) -> bool:
    return not line.strip() or bool(_FENCE.match(line) or _HEADING.match(line) or _TABLE.match(line))


def _paragraph(lines: Sequence[str], width: int) -> Iterator[Block]:
    if len(lines) >= 2 and (rule := _UNDERLINE.match(lines[1])) and not lines[0].lstrip().startswith(("-", "*")):
        yield Block(kind="heading", text=_plain(lines[0]), level=1 if "=" in rule[1] else 2)
        lines = lines[2:]
    elif len(lines) == 1 and (bold := _BOLD.match(lines[0].strip())) and not bold["text"].rstrip().endswith((".", ":")):
        yield Block(kind="heading", text=_plain(bold["text"]), level=6)
        return
    plain = [line for line in map(_plain, lines) if line.strip()]
    if plain:
        yield Block(kind="text", text=flowing(plain, width) if width else "\n".join(plain))


def _plain(text: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)", r"\1", _IMAGE.sub("", text))
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    return re.sub(r"\\([\\`*_{}\[\]()#+\-.!|>~])", r"\1", text).rstrip()
