"""Which of the chunks that a search brought up are given to the model, if any. Pure.

The floor decides that the knowledge has nothing to say; a small model would answer from anything it is given.
Evidence of a chunk is its cosine plus a little for the share of the question's words that stand in it; when question
and chunk are in different languages their words cannot match and cosines are lower, so most is taken for granted;
less for a few words, because short texts are near to everything.

Measured by `benchmarks/floor.py` on XQuAD, half of the articles learned, 300 questions about each half:

| questions | articles | declined falsely | accepted falsely |
| --- | --- | --- | --- |
| English | English | 2.7 % | 3.0 % |
| German | German | 2.7 % | 9.7 % |
| German | English | 24.0 % | 2.0 % |
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from knowledge.chunks import PATH_MARK
from knowledge.index import Candidate, Stored
from knowledge.language import guess

FLOOR = 0.842
WORDS_WEIGHT = 0.04
FOREIGN_SHARE, FOREIGN_SHARE_OF_FEW, FEW_TERMS = 0.9, 0.25, 3
NEAR_FLOOR = 0.03
"""How far below the floor a further passage may lie when the best one is above it."""
NEAR_BEST = 0.06
"""How far below the best one it may lie: beside a perfect match, the merely related is noise."""
WIDE = 0.08
"""The same for a section that is wanted for an overview."""
MERGED_CHARS = 640
"""About 160 tokens: two merged passages still fit into a small model's 400."""

_OVERVIEW = re.compile(
    r"\b(all|every|each|list|name the|overview|summar\w+|which|what are|what \w+ are there|how many|kinds?|types?|"
    r"alle|jede\w*|liste\w*|nenne|überblick|welche|wie viele|arten|"
    r"tous|toutes|liste[rz]?|quels|quelles|combien|todos|todas|lista|cuáles|cuántos|tutti|tutte|elenca|quali|quanti)\b",
    re.IGNORECASE,
)


def evidence(question: str, terms: frozenset[int], candidate: Candidate) -> float:
    """How much speaks for a chunk: about 0.72 (nothing) to 0.95 (certain) with this encoder."""
    share = len(terms & candidate.terms) / len(terms) if terms else 0.0
    if guess(question) not in ("", candidate.chunk.language):
        share = max(share, FOREIGN_SHARE if len(terms) > FEW_TERMS else FOREIGN_SHARE_OF_FEW)
    return candidate.cosine + WORDS_WEIGHT * share


def asks_for_overview(question: str) -> bool:
    """Whether the question is about several things at once ("Which four programs are there?")."""
    return bool(_OVERVIEW.search(question))


def choose(question: str, terms: frozenset[int], candidates: Sequence[Candidate], k: int) -> list[Stored]:
    """At most `k` passages, best first, from candidates in fused order; none when none reaches the floor."""
    weighed = [(evidence(question, terms, one), one.chunk) for one in candidates]
    best = max((weight for weight, _ in weighed), default=0.0)
    if best < FLOOR:
        return []
    wide = asks_for_overview(question)
    least = best - WIDE if wide else max(FLOOR - NEAR_FLOOR, best - NEAR_BEST)
    good = _distinct([chunk for weight, chunk in weighed if weight >= least])
    return overview(question, good)[:k] if wide else merged(good[:k])


def overview(question: str, chunks: Sequence[Stored]) -> list[Stored]:
    """The best first, then how each section of the list that is asked for begins, then the rest.

    That list is the largest family of sections, under one heading of one document, whose own headings share a word
    with the question: asked for programs, "QMB Program", "SLMB Program" and so on, in the document's order.
    """
    families: dict[tuple[str, str], dict[str, Stored]] = {}
    for chunk in sorted(chunks, key=lambda chunk: chunk.position):
        parent, _, leaf = chunk.heading.rpartition(PATH_MARK)
        if leaf and _share_a_word(question, leaf):
            families.setdefault((chunk.source_id, parent), {}).setdefault(chunk.heading, chunk)
    family = max(families.values(), key=len, default={})
    if len(family) < 2:
        return _one_per_section(chunks)
    best = chunks[0]
    leads = [lead for lead in family.values() if _section(lead) != _section(best)]
    return [best, *leads, *(chunk for chunk in _one_per_section(chunks) if chunk not in leads and chunk is not best)]


def _share_a_word(question: str, heading: str) -> bool:
    """A word of four letters or more, its ending aside."""
    first, second = ({word[:6] for word in re.findall(r"\w{4,}", text.lower())} for text in (question, heading))
    return any(one.startswith(other[:5]) or other.startswith(one[:5]) for one in first for other in second)


def _one_per_section(chunks: Sequence[Stored]) -> list[Stored]:
    """The best of each section first, then the rest: so that no section hides another."""
    first = {_section(chunk): chunk for chunk in reversed(chunks)}
    lead = [chunk for chunk in chunks if first[_section(chunk)] is chunk]
    return lead + [chunk for chunk in chunks if first[_section(chunk)] is not chunk]


def _section(chunk: Stored) -> tuple[str, str]:
    return chunk.source_id, chunk.heading


def _distinct(chunks: Sequence[Stored]) -> list[Stored]:
    """Without repetitions: the same document may have been learned for a channel and for its workspace."""
    first: dict[str, Stored] = {}
    for chunk in chunks:
        first.setdefault(chunk.text, chunk)
    return list(first.values())


def merged(chunks: Sequence[Stored]) -> list[Stored]:
    """Neighbours from one section and page as one passage, as long as it stays small, in the better one's place."""
    result: list[Stored] = []
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        for index, (held, (start, end)) in enumerate(zip(result, spans, strict=True)):
            together = _joined(held, chunk, start, end)
            if together is not None:
                result[index] = together
                spans[index] = (min(start, chunk.position), max(end, chunk.position))
                break
        else:
            result.append(chunk)
            spans.append((chunk.position, chunk.position))
    return result


def _joined(held: Stored, chunk: Stored, start: int, end: int) -> Stored | None:
    alike = (held.source_id, held.digest, held.heading, held.page) == (
        chunk.source_id,
        chunk.digest,
        chunk.heading,
        chunk.page,
    )
    if not alike or chunk.position not in (start - 1, end + 1) or len(held.text) + len(chunk.text) > MERGED_CHARS:
        return None
    first, second = (chunk, held) if chunk.position < start else (held, chunk)
    leaf = second.heading.rpartition(PATH_MARK)[2]
    return replace(held, text=f"{first.text}\n{second.text.removeprefix(leaf).lstrip()}")
