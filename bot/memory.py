"""What fits: counting tokens, and folding old messages into summary blocks before the window is full."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.messages import ModelLimits
from bot.ports import Conversation, StoredMessage, Summary

PER_MESSAGE = 5
"""Tokens that a chat template spends on each message, rounded up (ChatML: 5)."""
COMPACT_TO = 0.5
"""A compaction goes down to this share of the prompt's room, in one step."""
SUMMARIES_SHARE = 0.2
"""Summary blocks beyond this share of the prompt's room are merged into one."""
LONGEST_MESSAGE = 0.25
"""One old message is clipped to this share of the prompt's room."""

Summarise = Callable[[str, int], Awaitable[str]]
"""(notes and messages as text, most tokens) -> the summary. Raises `ModelError`."""

_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U0001f000-\U0001faff]")
_OTHER = re.compile(r"[^\x00-\u024f\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U0001f000-\U0001faff]")


class TokenEstimate:
    """Tokens of a text without asking a server, corrected by what servers report.

    Starts high (3.2 Latin characters a token, 1.6 of other alphabets, one per CJK sign), so that a prompt
    that seems to fit does fit.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def text(self, text: str) -> int:
        wide = len(_WIDE.findall(text))
        other = len(_OTHER.findall(text))
        latin = len(text) - wide - other
        return int((latin / 3.2 + other / 1.6 + wide) * self.factor) + 1

    def learn(self, estimated: int, reported: int) -> None:
        """Move a fifth of the way to what the server counted, within sane bounds."""
        if estimated > 200 and reported > 0:
            target = self.factor * reported / estimated
            self.factor = min(2.5, max(0.8, self.factor + (target * 1.03 - self.factor) / 5))


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How the window is shared out, in tokens."""

    prompt: int
    answer: int

    @classmethod
    def of(cls, limits: ModelLimits, max_answer: int) -> "Room":
        """The answer's share is always kept free: what was asked for, a quarter of the window at most."""
        answer = max(16, min(max_answer, limits.output_tokens, limits.context_tokens // 4))
        return cls(prompt=limits.context_tokens - answer, answer=answer)


def clip(text: str, most: int, estimate: TokenEstimate) -> str:
    """The text, or its beginning and end when it has more than `most` tokens; the same for the same input."""
    tokens = estimate.text(text) if estimate.factor == 1 else int(estimate.text(text) / estimate.factor)
    if tokens <= most:
        return text
    keep = max(20, int(len(text) * most / tokens))
    return f"{text[: keep * 3 // 4].rstrip()} [...] {text[-(keep // 4) :].lstrip()}"


def line(message: StoredMessage) -> str:
    """One message as a line of a transcript."""
    return f"{message.label if message.role == 'user' else 'Assistant'}: {message.text}"


def tokens_of(messages: Sequence[StoredMessage], estimate: TokenEstimate, most: int) -> list[int]:
    """The tokens of each message, clipped as the prompt clips it."""
    return [min(most, estimate.text(message.text) + estimate.text(message.label)) + PER_MESSAGE for message in messages]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Messages to be folded into a summary block, and blocks to be merged with it."""

    messages: tuple[StoredMessage, ...]
    merge: tuple[Summary, ...]


def plan(
    conversation: Conversation, *, fixed: int, room: Room, tail: int, share: float, estimate: TokenEstimate
) -> Fold | None:
    """What to fold, or None while there is room.

    `fixed` tokens stand before the history, `tail` tokens come after it. History is folded when it fills more
    than `share` of the room, or the tail would not fit any more; then down to half the room in one step,
    so that the front of the prompt stays the same for many turns.
    """
    most = int(room.prompt * LONGEST_MESSAGE)
    counts = tokens_of(conversation.messages, estimate, most)
    summaries = sum(estimate.text(block.text) for block in conversation.summaries)
    front = fixed + summaries + sum(counts)
    if front <= room.prompt * share and front + tail <= room.prompt:
        return None
    target = max(0, min(int(room.prompt * COMPACT_TO), room.prompt - tail)) - fixed - summaries
    kept, first_kept = 0, len(counts)
    while first_kept > 0 and kept + counts[first_kept - 1] <= target:
        first_kept -= 1
        kept += counts[first_kept]
    if conversation.messages and conversation.messages[-1].role == "user":  # a question that waits for its answer
        first_kept = min(first_kept, len(counts) - 1)
    folded = conversation.messages[:first_kept]
    merge = conversation.summaries if summaries > room.prompt * SUMMARIES_SHARE else ()
    return Fold(messages=folded, merge=merge) if folded or len(merge) > 1 else None


async def summarise(fold: Fold, summarise: Summarise, *, room: Room, estimate: TokenEstimate) -> str:
    """One block of text for a fold. Long stretches are read in several sittings, each fitting the room."""
    most_out = max(64, int(room.prompt * SUMMARIES_SHARE / 2))
    sitting = max(128, int(room.prompt * 0.6))
    notes = "\n".join(block.text for block in fold.merge)
    batch: list[str] = [notes] if notes else []
    size = estimate.text(notes) if notes else 0
    text = notes
    for message in fold.messages:
        entry = clip(line(message), sitting // 4, estimate)
        tokens = estimate.text(entry)
        if batch and size + tokens > sitting:
            text = await summarise("\n".join(batch), most_out)
            batch, size = [text], estimate.text(text)
        batch.append(entry)
        size += tokens
    if batch and (fold.messages or len(fold.merge) > 1):
        text = await summarise("\n".join(batch), most_out)
    return text


def extract(fold: Fold, *, room: Room, estimate: TokenEstimate) -> str:
    """The block for a fold when no model can write one: the first sentence of each, the earliest first."""
    budget = max(64, int(room.prompt * SUMMARIES_SHARE / 2))
    lines = [text for block in fold.merge for text in block.text.splitlines()]
    lines += [line(message) for message in fold.messages if message.role == "user"]
    kept: list[str] = []
    for text in lines:
        sentence = re.split(r"(?<=[.!?。！？])\s", " ".join(text.split()), maxsplit=1)[0][:200]
        budget -= estimate.text(sentence)
        if budget < 0:
            break
        kept.append(sentence)
    return "\n".join(kept)
