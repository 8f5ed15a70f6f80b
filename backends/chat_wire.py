"""The chat-completions wire format: a request as JSON, the events of a stream as pieces. No input or output.

Source: the OpenAI API description, and what vLLM, llama.cpp, TGI, Ollama and OpenRouter send in its name.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends import failures
from bot.messages import (
    ChatMessage,
    Finished,
    FinishReason,
    ModelRequest,
    Piece,
    Reasoning,
    Text,
    ToolCall,
    Usage,
)

DONE = b"[DONE]"

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""Whatever else servers say ("stop_sequence", "eos_token") is an ordinary stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """What this server takes; learned from its refusals, one by one."""

    include_usage: bool = True
    token_field: str = "max_tokens"  # noqa: S105 - a field's name
    temperature: bool = True
    stop: bool = True

    def without(self, complaint: str) -> "Dialect":
        """The dialect that avoids what a 400 or 422 complains about; the same one when there is nothing to change."""
        text = complaint.lower()
        if self.include_usage and ("stream_options" in text or "include_usage" in text):
            return replace(self, include_usage=False)
        if self.token_field == "max_tokens" and "max_completion_tokens" in text:  # noqa: S105
            return replace(self, token_field="max_completion_tokens")  # noqa: S106
        if self.temperature and "temperature" in text and "support" in text:
            return replace(self, temperature=False)
        if self.stop and "'stop'" in text and "support" in text:
            return replace(self, stop=False)
        return self


def request_body(request: ModelRequest, model: str, dialect: Dialect, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a streamed chat completion; fields in `extra` go over ours."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        dialect.token_field: request.max_tokens,
    }
    if dialect.include_usage:
        body["stream_options"] = {"include_usage": True}
    if request.temperature is not None and dialect.temperature:
        body["temperature"] = request.temperature
    if request.stop and dialect.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = request.seed
    if request.json_schema is not None:
        shape = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in request.tools
        ]
    return {**body, **extra}


def _message(message: ChatMessage) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
        for image in message.images:
            data = base64.b64encode(image.data).decode()
            parts.append({"type": "image_url", "image_url": {"url": f"data:{image.media_type};base64,{data}"}})
        wire["content"] = parts
    if message.tool_calls:
        wire["content"] = message.content or None  # with "" some servers drop the calls
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        wire["tool_call_id"] = message.tool_call_id
    return wire


class Reply:
    """One streamed answer: takes events, gives pieces. Raises `ModelError` for what the server says went wrong."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._reason = ""
        self._model = ""
        self._usage: Usage | None = None
        self._calls: dict[int, _Call] = {}
        self._frame = _Frame()
        self.done = False
        """The server has said that nothing follows."""

    def take(self, event: bytes) -> Sequence[Piece]:
        """The pieces of one event."""
        try:
            if (text := self._frame.match(event)) is not None:
                return (Text(text),)
            if event == DONE:
                self.done = True
                return ()
            return self._chunk(json.loads(event), event)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise failures.garbled(self._url) from error

    def end(self) -> Sequence[Piece]:
        """The last pieces: tool calls, usage, the finish. Raises `ModelBroke` when the server had not finished."""
        if not self._reason and not self.done:
            raise failures.cut(self._url)
        calls = [call.piece() for _, call in sorted(self._calls.items())]
        reason = "tool_calls" if calls and self._reason in ("", "stop") else _REASONS.get(self._reason, "stop")
        usage = [self._usage] if self._usage else []
        return (*calls, *usage, Finished(reason=reason, model=self._model))

    def _chunk(self, chunk: Any, event: bytes) -> Sequence[Piece]:
        if chunk.get("error") or chunk.get("object") == "error":
            raise failures.from_event(chunk, url=self._url)
        if not self._model:
            self._model = chunk.get("model") or ""
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        if not (choices := chunk.get("choices")):
            return ()
        choice = choices[0]
        delta = choice.get("delta") or choice.get("message") or {}
        self._reason = choice.get("finish_reason") or self._reason
        content = delta.get("content")
        alone = not any(value for key, value in delta.items() if key not in ("content", "role"))
        if content and alone and not self._reason and not usage:
            self._frame.learn(event, content)
        return self._delta(delta, content)

    def _delta(self, delta: dict[str, Any], content: str | None) -> list[Piece]:
        pieces: list[Piece] = []
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            pieces.append(Reasoning(str(thought)))
        if content:
            pieces.append(Text(content))
        for call in delta.get("tool_calls") or ():
            self._call(call)
        return pieces

    def _call(self, delta: dict[str, Any]) -> None:
        index = delta.get("index")
        if index is None:  # some servers send whole calls, unnumbered
            index = len(self._calls)
        call = self._calls.setdefault(int(index), _Call())
        function = delta.get("function") or {}
        call.id = delta.get("id") or call.id
        call.name = function.get("name") or call.name
        arguments = function.get("arguments") or ""
        call.arguments += arguments if isinstance(arguments, str) else json.dumps(arguments)


@dataclass(slots=True)
class _Call:
    """A tool call that is still arriving."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def piece(self) -> ToolCall:
        return ToolCall(id=self.id or f"call_{self.name}", name=self.name, arguments=self.arguments or "{}")


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
    )


class _Frame:
    """What stays the same around the text from event to event, so that most events need no JSON parser.

    An event that differs from a parsed one only inside the plain text between two quotes means the same, but for that
    text. Saves about 4 us a token.
    """

    __slots__ = ("_after", "_before", "_misses", "_size")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._size = 0
        self._misses = 0

    def match(self, event: bytes) -> str | None:
        """The text, when the event is the known frame around a plain string."""
        if not self._size or not event.startswith(self._before) or not event.endswith(self._after):
            return None
        middle = event[len(self._before) : len(event) - len(self._after)]
        if len(event) < self._size or b'"' in middle or b"\\" in middle or not middle:
            return None
        self._misses = 0
        return middle.decode()

    def learn(self, event: bytes, content: str) -> None:
        """Remember the frame of an event whose only news is `content`; give up where it changes all the time."""
        self._misses += 1
        if self._misses > 8 or event.count(b'"content"') != 1:
            return
        start = event.find(b'"', event.find(b'"content"') + 9) + 1
        end = start + len(plain := content.encode())
        if event[start:end] == plain and event[end : end + 1] == b'"' and b'"' not in plain and b"\\" not in plain:
            self._before, self._after = event[:start], event[end:]
            self._size = len(self._before) + len(self._after)
