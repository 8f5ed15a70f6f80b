"""How often the score floor is wrong: the measurement behind the constants in `knowledge.retrieve`.

    python -m benchmarks.floor FOLDER   (with xquad.en.json and xquad.de.json, CC BY-SA 4.0)

Learns the first half of XQuAD's articles and asks questions about both halves. A question about a learned article
that brings nothing is declined falsely; one about an article that was not learned and brings something is accepted
falsely. XQuAD's questions are all of one style, encyclopaedic and precise, so the second is the harder half.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from knowledge.chunks import Block, Document, chunk
from knowledge.embed import Encoder
from knowledge.index import Candidate, Stored
from knowledge.language import language_of
from knowledge.retrieve import FLOOR, evidence
from knowledge.sparse import Sparse

QUESTIONS = 300
"""Asked of each half and language."""

Question = tuple[bool, str]


def articles(path: Path) -> list[tuple[list[str], list[str]]]:
    """Paragraphs and questions of each article."""
    data = json.loads(path.read_text())["data"]
    return [
        (
            [paragraph["context"] for paragraph in article["paragraphs"]],
            [qa["question"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]],
        )
        for article in data
    ]


def learned(encoder: Encoder, sparse: Sparse, paragraphs: Sequence[str]) -> list[tuple[Stored, frozenset[int]]]:
    """The chunks of some paragraphs, as the index would hold them, with their terms."""
    found = []
    for number, paragraph in enumerate(paragraphs):
        document = Document(title="", blocks=(Block(kind="text", text=paragraph),))
        for piece in chunk(document, encoder.count):
            stored = Stored(
                id=f"{number}-{piece.position}",
                text=piece.text,
                heading="",
                page=None,
                position=piece.position,
                source_id=str(number),
                source="",
                title="",
                digest="",
                scope="",
                language=language_of(piece.text),
            )
            found.append((stored, frozenset(sparse.passage(piece.text))))
    return found


def strongest(
    encoder: Encoder, sparse: Sparse, chunks: Sequence[tuple[Stored, frozenset[int]]], questions: Sequence[Question]
) -> Iterator[tuple[bool, float]]:
    """For each question, whether it is about what was learned, and the best evidence that was found for it."""
    vectors = encoder.encode([stored.text for stored, _ in chunks], "passage")
    asked = encoder.encode([text for _, text in questions], "query")
    for (known, text), vector in zip(questions, asked, strict=True):
        cosines, terms = vectors @ vector, frozenset(sparse.query(text))
        near = np.argsort(-cosines)[:40]
        candidates = [
            Candidate(chunk=chunks[at][0], score=0.0, cosine=float(cosines[at]), terms=chunks[at][1]) for at in near
        ]
        yield known, max(evidence(text, terms, candidate) for candidate in candidates)


def main(folder: Path) -> None:
    """Measure English, German, and German questions to English articles, and print a table."""
    encoder, sparse = Encoder.load(), Sparse()
    texts = {language: articles(folder / f"xquad.{language}.json") for language in ("en", "de")}
    half = len(texts["en"]) // 2
    print(f"floor {FLOOR}; {half} of {2 * half} articles learned; {QUESTIONS} questions about each half\n")
    print("| questions | articles | chunks | declined falsely | accepted falsely | best floor, wrong in all |")
    print("| --- | --- | --- | --- | --- | --- |")
    for asked, told in (("en", "en"), ("de", "de"), ("de", "en")):
        chunks = learned(encoder, sparse, [text for paragraphs, _ in texts[told][:half] for text in paragraphs])
        pick = random.Random(7)
        questions: list[Question] = []
        for known, part in ((True, texts[asked][:half]), (False, texts[asked][half:])):
            every = [question for _, listed in part for question in listed]
            questions += [(known, question) for question in pick.sample(every, min(QUESTIONS, len(every)))]
        found = list(strongest(encoder, sparse, chunks, questions))
        inside = np.array([strength for known, strength in found if known])
        outside = np.array([strength for known, strength in found if not known])
        errors = {
            at: ((inside < at).mean() + (outside >= at).mean()) / 2
            for at in np.arange(0.8, 0.9, 0.002).round(3).tolist()
        }
        best = min(errors, key=lambda at: errors[at])
        print(
            f"| {asked} | {told} | {len(chunks)} | {(inside < FLOOR).mean():.1%} | {(outside >= FLOOR).mean():.1%}"
            f" | {best:.3f}, {errors[best]:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
