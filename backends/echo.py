"""A model without a model: it answers at once, always the same, and remembers what it was asked.

For trying Chinwag out without any server, and for every test that needs a backend. Passes the contract's tests.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from backends.tokens import estimate, text_tokens
from bot.errors import ModelError
from bot.messages import (
    STANDARD,
    Finished,
    FinishReason,
    Health,
    ModelLimits,
    ModelRequest,
    Piece,
    Profile,
    Reasoning,
    Text,
    ToolCall,
    Usage,
    Waiting,
)
from bot.ports import BackendOptions, ModelBackend

_SOURCES = re.compile(r'<source n="1"|^\[1\] ', re.MULTILINE)
_QUESTION = re.compile(r".*(?:</source>|\nQuestion:)\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class EchoReply:
    """One scripted answer. `error` is raised after the text; `delay_s` passes before each piece."""

    text: str = ""
    waiting: tuple[str, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reason: FinishReason = "stop"
    usage: Usage | None = None
    error: ModelError | None = None
    delay_s: float = 0.0


class EchoBackend:
    """Answers from `script` in order, then by the first of `rules` whose key is in the question, then "You said: ...".

    When the last message brings numbered sources, that answer cites the first. `requests` holds every request it got,
    `open_streams` counts those that are being answered.
    """

    def __init__(
        self,
        *,
        script: Sequence[str | EchoReply] = (),
        rules: Mapping[str, str | EchoReply] | None = None,
        limits: ModelLimits | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.script = list(script)
        self.rules = dict(rules or {})
        self.requests: list[ModelRequest] = []
        self.open_streams = 0
        self.delay_s = delay_s
        self._limits = limits or ModelLimits(model="echo", context_tokens=8192, output_tokens=2048, local=True)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """Answer word by word."""
        self.requests.append(request)
        reply = self._reply(request)
        self.open_streams += 1
        try:
            for piece in _pieces(reply, request):
                if delay := reply.delay_s or self.delay_s:
                    await asyncio.sleep(delay)
                yield piece
            if reply.error:
                raise reply.error
            spoken = text_tokens(reply.text)
            yield reply.usage or Usage(
                prompt_tokens=estimate(request), completion_tokens=min(spoken, request.max_tokens)
            )
            yield Finished(reason=_reason(reply, request), model=self._limits.model)
        finally:
            self.open_streams -= 1

    async def limits(self) -> ModelLimits:
        """As it was opened with."""
        return self._limits

    async def count_tokens(self, request: ModelRequest) -> int:
        """An estimate."""
        return estimate(request)

    async def health(self) -> Health:
        """Always well."""
        return Health(name="model", ok=True, detail="echo: repeats what it is told")

    def _reply(self, request: ModelRequest) -> EchoReply:
        prompt = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
        if self.script:
            chosen: str | EchoReply = self.script.pop(0)
        else:
            found = (reply for key, reply in self.rules.items() if key in prompt)
            chosen = next(found, f"You said: {_asked(prompt)}{' [1]' if _SOURCES.search(prompt) else ''}")
        return EchoReply(text=chosen) if isinstance(chosen, str) else chosen


def _asked(prompt: str) -> str:
    """The question without the sources before it."""
    return _QUESTION.sub("", prompt) if _SOURCES.search(prompt) else prompt


def _pieces(reply: EchoReply, request: ModelRequest) -> list[Piece]:
    words = re.findall(r"\s*\S+\s*?", reply.text) if reply.text.strip() else [reply.text] if reply.text else []
    return [
        *(Waiting(note=note) for note in reply.waiting),
        *([Reasoning(reply.reasoning)] if reply.reasoning else []),
        *(Text(word) for word in words[: request.max_tokens]),
        *reply.tool_calls,
    ]


def _reason(reply: EchoReply, request: ModelRequest) -> FinishReason:
    if len(reply.text.split()) > request.max_tokens:
        return "length"
    return "tool_calls" if reply.tool_calls else reply.reason


def open_backend(options: BackendOptions) -> AbstractAsyncContextManager[ModelBackend]:
    """Open an echo. `options.extra` may hold `script`, `rules`, `delay_s`, `profile`, `local`; see `EchoBackend`."""
    return open_echo(options)


@asynccontextmanager
async def open_echo(options: BackendOptions) -> AsyncIterator[EchoBackend]:
    """The same, as the class that it is."""
    window = options.context_tokens or 8192
    profile: Profile = options.extra.get("profile", STANDARD)
    limits = ModelLimits(
        model=options.model or "echo",
        context_tokens=window,
        output_tokens=max(1, window // 4),
        profile=profile,
        local=bool(options.extra.get("local", True)),
        vision=bool(options.extra.get("vision", False)),
        tools=bool(options.extra.get("tools", False)),
    )
    yield EchoBackend(
        script=options.extra.get("script", ()),
        rules=options.extra.get("rules"),
        limits=limits,
        delay_s=float(options.extra.get("delay_s", 0.0)),
    )
