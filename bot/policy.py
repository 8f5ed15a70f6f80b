"""Decisions about what is answered at all: how often one person may ask, and what lies outside the knowledge."""

import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable

from bot.messages import ChatMessage, Incoming, ModelRequest
from bot.ports import Conversation

DECLINED = "I found nothing about that in what I was taught."
KINDS = ("small_talk", "conversation", "writing", "fact")
SORT = (
    "Sort the message into one kind.\n"
    "small_talk: greetings, thanks, feelings, jokes, questions about you.\n"
    "conversation: about what was said before, the speaker, their name or likes.\n"
    "writing: an order to write, translate or correct a text.\n"
    "fact: any other question: who, what, when, where, which, how, how much."
)
"""By this and a JSON schema the small model sorts what `benchmarks/outside.py` holds: in November 2026 it let 2 of 15
facts through and took none of 19 other messages for one."""

_WORD = re.compile(r"\w{5,}")


class RateLimit:
    """At most `per_minute` messages of one person in any 60 seconds; 0 for no limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._asked: defaultdict[tuple[str, str, str], deque[float]] = defaultdict(deque)

    def wait_s(self, incoming: Incoming) -> float:
        """Count the message and give 0, or give the seconds until the next one is welcome, and count nothing."""
        if self._per_minute <= 0:
            return 0.0
        now = self._clock()
        asked = self._asked[incoming.place.platform, incoming.place.workspace, incoming.author.id]
        while asked and asked[0] <= now - 60:
            asked.popleft()
        if len(asked) >= self._per_minute:
            return asked[0] + 60 - now
        asked.append(now)
        return 0.0


def sorting_request(text: str) -> ModelRequest:
    """Ask a model what kind of message this is; `kind_of` reads its answer."""
    schema = {
        "type": "object",
        "properties": {"kind": {"type": "string", "enum": list(KINDS)}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    asked = (ChatMessage(role="system", content=SORT), ChatMessage(role="user", content=f"Message: {text[:500]}"))
    return ModelRequest(messages=asked, max_tokens=20, temperature=0.0, json_schema=schema)


def kind_of(answer: str) -> str:
    """One of `KINDS`, or nothing when the model did not keep to the schema."""
    try:
        kind = json.loads(answer)["kind"]
    except (ValueError, KeyError, TypeError):
        return ""
    return kind if kind in KINDS else ""


def was_spoken_of(text: str, conversation: Conversation, event_id: str) -> bool:
    """Was something said, not merely asked, with a longer word of this message? Then it may hold the answer too."""
    words = set(_WORD.findall(text.casefold()))
    others = (message for message in conversation.messages if message.event_id != event_id)
    said = [message.text for message in others if message.text != DECLINED and not message.text.endswith("?")]
    said += [block.text for block in conversation.summaries]
    said += [pin.text for pin in conversation.pins]
    return any(words & set(_WORD.findall(part.casefold())) for part in said)
