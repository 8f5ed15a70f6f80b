"""From the model's raw stream to text that may be shown: no thinking, no other speakers, no invented citations.

The filter works piece by piece and never takes back what it let through: what was streamed is the answer.
"""

import re
from collections.abc import Iterable, Sequence

from bot.messages import GivenPassage, Passage

THINKING = {"<think>": "</think>", "<thinking>": "</thinking>", "</think>": "", "</thinking>": ""}
"""Opening tags and what closes them; a closing tag that nothing opened is dropped alone."""

_PLAIN_END = re.compile(r"[<\[\]\n`]|[ \t]\Z")
_TOKEN = re.compile(r"```|`|\n|(?P<space>[ \t]*)\[(?P<numbers>\d{1,3}(?:[ \t]*[,;][ \t]*\d{1,3})*)\](?P<link>\(|\w)?")
_UNDECIDED = re.compile(r"(?:`+|[ \t]*\[[\d,; \t]{0,80}|[ \t]*\[[\d,; \t]{1,80}\]|[ \t]+)\Z")


class _Thinking:
    """Drops what stands between thinking tags, also when a tag is cut into pieces."""

    def __init__(self) -> None:
        self.held = ""
        self.closes = ""

    def feed(self, piece: str, *, final: bool = False) -> str:
        text, self.held, out = self.held + piece, "", ""
        while text:
            if self.closes:
                _, found, rest = text.partition(self.closes)
                if not found:
                    self.held = "" if final else _begun(text, [self.closes])
                    return out
                text, self.closes = rest.lstrip("\n"), ""
                continue
            opening = min((tag for tag in THINKING if tag in text), key=text.index, default="")
            if not opening:
                self.held = "" if final else _begun(text, THINKING)
                return out + text[: len(text) - len(self.held)]
            before, _, text = text.partition(opening)
            out, self.closes = out + before, THINKING[opening]
        return out


class _OwnName:
    """Drops blank space and the assistant's own name before the first word."""

    def __init__(self, names: Iterable[str]) -> None:
        chosen = [name for name in names if name]
        self._pattern = re.compile(
            rf"(?:\*\*)?(?:{'|'.join(map(re.escape, chosen))})(?:\*\*)?:(?:\*\*)?\s*", re.IGNORECASE
        )
        self._starts = [f"{star}{name}{star}:".casefold() for name in chosen for star in ("", "**")]
        self.held = ""
        self.done = False

    def feed(self, piece: str, *, final: bool = False) -> str:
        if self.done:
            return piece
        text = (self.held + piece).lstrip()
        match = self._pattern.match(text)
        if match and (text[match.end() :].strip("*") or final):
            text = text[match.end() :]
        elif not final and (match or any(start.startswith(text.casefold()) for start in self._starts)):
            self.held = text
            return ""
        self.held, self.done = "", True
        return text


class _OtherSpeakers:
    """Ends the answer at the first line that begins with somebody else's name."""

    def __init__(self, names: Sequence[str]) -> None:
        chosen = "|".join(map(re.escape, names))
        self._pattern = re.compile(rf"\n\s*(?:\*\*)?(?:{chosen})(?:\*\*)?:") if names else None
        self._starts = [f"\n{star}{name}{star}:" for name in names for star in ("", "**")]
        self.held = ""
        self.ended = False

    def feed(self, piece: str, *, final: bool = False) -> str:
        if self.ended or self._pattern is None:
            return "" if self.ended else piece
        text = self.held + piece
        match = self._pattern.search(text)
        if match:
            self.ended, self.held = True, ""
            return text[: match.start()].rstrip()
        self.held = "" if final else _line_begun(text, self._starts)
        return text[: len(text) - len(self.held)]


class _Citations:
    """Keeps `[n]` for passages that were given, drops the others, and leaves code alone."""

    def __init__(self, passages: int, *, strict: bool = False) -> None:
        self._passages = passages
        self._strict = strict or passages > 0
        self._fence = self._inline = False
        self.held = ""
        self.last = ""
        self.cited: set[int] = set()

    def feed(self, piece: str, *, final: bool = False) -> str:
        text, self.held = self.held + piece, ""
        if not final and (match := _UNDECIDED.search(text)):
            text, self.held = text[: match.start()], text[match.start() :]
        out, at = [], 0
        for match in _TOKEN.finditer(text):
            out.append(text[at : match.start()])
            before = text[match.start() - 1] if match.start() else self.last
            out.append(self._token(match, before))
            at = match.end()
        out.append(text[at:])
        if text:
            self.last = text[-1]
        return "".join(out)

    def _token(self, match: re.Match[str], before: str) -> str:
        mark = match.group()
        if mark == "```":
            self._fence, self._inline = not self._fence, False
        elif mark == "`" and not self._fence:
            self._inline = not self._inline
        elif mark == "\n":
            self._inline = False
        elif match["numbers"] and not (self._fence or self._inline or match["link"]):
            index = before.isalnum() and not match["space"]  # rows[3], when nothing could be cited anyway
            return mark if index and not self._strict else self._marker(match["space"], match["numbers"])
        return mark

    def _marker(self, space: str, numbers: str) -> str:
        valid = [number for number in map(int, re.findall(r"\d+", numbers)) if 1 <= number <= self._passages]
        self.cited.update(valid)
        return space + "".join(f"[{number}]" for number in valid) if valid else ""


class AnswerFilter:
    """The four stages in a row. Feed it the model's pieces; show what it returns."""

    def __init__(self, *, persona: str, speakers: Sequence[str] = (), passages: int = 0) -> None:
        self._thinking = _Thinking()
        self._own_name = _OwnName((persona, "Assistant"))
        self._others = _OtherSpeakers([name for name in speakers if name != persona])
        self._citations = _Citations(passages)

    @property
    def ended(self) -> bool:
        """The model began to speak for somebody else: nothing that follows belongs to the answer."""
        return self._others.ended

    @property
    def cited(self) -> frozenset[int]:
        """The numbers of the passages that were cited so far."""
        return frozenset(self._citations.cited)

    def feed(self, piece: str) -> str:
        """The text that can be shown now; some may be held back until it is clear what it is."""
        if self._own_name.done and not self._holding() and not _PLAIN_END.search(piece):
            if piece:
                self._citations.last = piece[-1]
            return piece
        text = self._own_name.feed(self._thinking.feed(piece))
        return self._citations.feed(self._others.feed(text))

    def close(self) -> str:
        """What was held back and is part of the answer after all."""
        text = self._own_name.feed(self._thinking.feed("", final=True), final=True)
        return self._citations.feed(self._others.feed(text, final=True), final=True).rstrip()

    def _holding(self) -> bool:
        return bool(
            self._thinking.held
            or self._thinking.closes
            or self._others.held
            or self._others.ended
            or self._citations.held
        )


def _line_begun(text: str, starts: Sequence[str]) -> str:
    """The end of `text` that is a line break, blank space, and perhaps the beginning of a name."""
    match = re.search(r"\n\s*([^\n]*)\Z", text)
    if match is None or not any(start[1:].startswith(match[1]) for start in starts):
        return ""
    return match[0]


def without_citations(text: str) -> str:
    """The text without its `[n]` markers: in a later turn the numbers would mean other passages."""
    return _Citations(0, strict=True).feed(text, final=True)


def given(passages: Sequence[Passage], cited: frozenset[int]) -> tuple[GivenPassage, ...]:
    """The passages under the numbers that the model saw, with what the answer made of them."""
    return tuple(GivenPassage(n=n, passage=p, cited=n in cited) for n, p in enumerate(passages, start=1))


def _begun(text: str, words: Iterable[str]) -> str:
    """The longest end of `text` that is the beginning of one of `words`."""
    words = tuple(words)
    longest = min(len(text), max(map(len, words), default=1) - 1)
    return next((text[-size:] for size in range(longest, 0, -1) if any(w.startswith(text[-size:]) for w in words)), "")
