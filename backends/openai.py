"""Any server that speaks OpenAI's chat completions: OpenAI, vLLM, SGLang, llama.cpp, OpenRouter and many more."""

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from backends import failures, sse
from backends.chat_wire import Dialect, Reply, request_body
from backends.tokens import Estimate
from bot.errors import (
    ModelBroke,
    ModelError,
    ModelOverloaded,
    ModelRefusedKey,
    ModelRefusedRequest,
    ModelUnknown,
    PromptTooLong,
)
from bot.messages import SMALL, STANDARD, Health, ModelLimits, ModelRequest, Piece, Profile, Usage
from bot.ports import BackendOptions, ModelBackend

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_CONTEXT_TOKENS = 8192
_CONNECT_TIMEOUT_S = 10.0
_ASK_TIMEOUT_S = 10.0
_DRAIN_S = 0.05
"""How long a finished reply may take to end its connection's use, so that the connection can be used again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """`BackendOptions.extra` of this kind."""

    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields laid over every request."""
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    extra_query: Mapping[str, str] = field(default_factory=dict)
    conversation_field: str = ""
    """A request field that takes the conversation's anonymous name: `user`, `prompt_cache_key`."""
    output_tokens: int | None = None
    profile: str = ""
    vision: bool | None = None
    tools: bool | None = None
    max_tokens_field: str = "max_tokens"


_STALE_CONNECTIONS = 8
"""How often a request that could not be sent is tried on another connection."""


def open_backend(options: BackendOptions) -> AbstractAsyncContextManager[ModelBackend]:
    """Open a client for `options.base_url`; nothing is asked of the server yet."""
    return open_client(options)


@asynccontextmanager
async def open_client(options: BackendOptions) -> AsyncIterator["OpenAIBackend"]:
    """The same, as the class that it is."""
    known = {name: value for name, value in options.extra.items() if name in Settings.__dataclass_fields__}
    url = base_url(options.base_url)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=not is_local(url),
    ) as session:
        yield OpenAIBackend(session, url, options, Settings(**known))


def base_url(setting: str) -> str:
    """The address up to and including `/v1`; a bare host gets it added."""
    url = (setting or DEFAULT_URL).rstrip("/").removesuffix("/chat/completions")
    return url if urlsplit(url).path else f"{url}/v1"


def is_local(url: str) -> bool:
    """Does this address stay on this machine?"""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class OpenAIBackend:
    """A client for one model at one address. Made by `open_client`, which closes its connections."""

    def __init__(self, session: aiohttp.ClientSession, url: str, options: BackendOptions, settings: Settings) -> None:
        self._session = session
        self._url = url
        self._options = options
        self._settings = settings
        self._dialect = Dialect(token_field=settings.max_tokens_field)
        self._estimate = Estimate()
        self._limits: ModelLimits | None = None
        self._counts = False
        own = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        self._headers = {**own, **settings.extra_headers}
        if options.api_key:
            self._headers = {"Authorization": f"Bearer {options.api_key}", **self._headers}

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """Answer piece by piece; the connection is closed at once when the caller stops early.

        The hot path: every streamed token of every conversation comes through the inner loop.
        """
        response = await self._open(request)
        events, reply = sse.EventReader(), Reply(self._url)
        read, feed, take = response.content.readany, events.feed, reply.take
        watch = _Watch(response, self._options.timeout_s)
        try:
            if response.content_type == "application/json":  # not streamed, although we asked for it
                for piece in take(await response.read()):
                    yield piece
            while not reply.done and (chunk := await read()):
                watch.alive = True
                for event in feed(chunk):
                    for piece in take(event):
                        yield piece
            for piece in self._ending(request, events, reply):
                yield piece
            await _drain(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise failures.from_exception(error, url=self._url) from error
        finally:
            watch.end()
            response.close()

    def _ending(self, request: ModelRequest, events: sse.EventReader, reply: Reply) -> list[Piece]:
        pieces = [piece for event in events.close() for piece in reply.take(event)]
        pieces.extend(reply.end())
        for piece in pieces:
            if isinstance(piece, Usage):
                self._estimate.learn(request, piece.prompt_tokens)
        return pieces

    async def limits(self) -> ModelLimits:
        """The window as the server tells it, else as the settings do, else 8192; asked once."""
        if self._limits is None:
            self._limits = await self._ask_limits()
        return self._limits

    async def count_tokens(self, request: ModelRequest) -> int:
        """By llama.cpp's own tokenizer where that is what answers, else an estimate corrected by reported usage."""
        if self._counts:
            try:
                return await self._count(request)
            except (ModelUnknown, ModelRefusedRequest):
                self._counts = False  # an older server, without these two routes
            except ModelError:
                pass  # an estimate is better than no answer
        return self._estimate.of(request)

    async def health(self) -> Health:
        """Does the server answer, and does it list the model?"""
        name = f"model server {self._url}"
        try:
            models = _models(await self._ask("GET", "/models"))
        except ModelError as error:
            return Health(name=name, ok=False, detail=str(error), fix="Check CHINWAG_BASE_URL and CHINWAG_API_KEY.")
        wanted = self._options.model
        if wanted and models and wanted not in models:
            some = ", ".join(list(models)[:5])
            return Health(name=name, ok=False, detail=f"It has no model {wanted!r}.", fix=f"Set CHINWAG_MODEL: {some}")
        return Health(name=name, ok=True, detail=f"answers, model {wanted or next(iter(models), 'unnamed')}")

    # --- the request ----------------------------------------------------------------------------

    async def _open(self, request: ModelRequest) -> aiohttp.ClientResponse:
        """Post until the server takes our dialect; each change is made at most once, and remembered."""
        model = self._options.model or (await self.limits()).model
        extra = dict(self._settings.extra_body)
        if self._settings.conversation_field and request.conversation:
            extra.setdefault(self._settings.conversation_field, request.conversation)
        while True:
            used = self._dialect
            body = request_body(request, model, used, extra)
            response = await self._send("POST", f"{self._url}/chat/completions", body, self._options.timeout_s)
            if response.status == 200:
                return self._not_a_page(response)
            complaint = await _rest(response)
            if response.status not in (400, 422) or used.without(complaint) == used:
                raise self._refusal(response, complaint)
            self._dialect = used.without(complaint)

    async def _send(self, method: str, url: str, body: Any, timeout_s: float) -> aiohttp.ClientResponse:
        """Send and wait for the head of the reply. Raises `ModelError`.

        Again when the server had closed an idle connection that we took for open: a few times where nothing could be
        sent at all (after a burst several of them lie in the pool), once where the server may have read the request.
        """
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        ask = functools.partial(
            self._session.request, method, url, data=data, headers=self._headers, params=self._settings.extra_query
        )
        try:
            async with asyncio.timeout(timeout_s):
                unread, unsent = 1, _STALE_CONNECTIONS
                while True:
                    try:
                        return await ask()
                    except aiohttp.ClientConnectorError:
                        raise
                    except aiohttp.ServerDisconnectedError:
                        unread -= 1
                        if unread < 0:
                            raise
                    except aiohttp.ClientOSError:
                        unsent -= 1
                        if unsent < 0:
                            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise failures.from_exception(error, url=self._url) from error

    def _not_a_page(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        if response.content_type == "text/html":
            response.close()
            raise failures.not_an_api(self._url)
        return response

    def _refusal(self, response: aiohttp.ClientResponse, complaint: str) -> ModelError:
        refusal = failures.from_status(response.status, complaint, url=self._url, headers=response.headers)
        if isinstance(refusal, ModelUnknown | PromptTooLong):
            self._limits = None  # the server may have been restarted with another model or window
        return refusal

    # --- what the server tells about itself -----------------------------------------------------

    async def _ask_limits(self) -> ModelLimits:
        try:
            models = _models(await self._ask("GET", "/models"))
        except (ModelUnknown, ModelBroke, ModelOverloaded):
            models = {}
        except ModelError as error:
            if isinstance(error, ModelRefusedKey) or error.retryable:
                raise
            models = {}
        model = self._options.model or self._only(models)
        facts = models.get(model, {})
        window = await self._window(facts)
        window = min(filter(None, (window, self._options.context_tokens)), default=DEFAULT_CONTEXT_TOKENS)
        return self._described(model, window, facts)

    def _only(self, models: Mapping[str, Mapping[str, Any]]) -> str:
        if len(models) > 1:
            raise ModelUnknown(f"Set CHINWAG_MODEL; {self._url} has: {', '.join(list(models)[:8])}.")
        return next(iter(models), "default")

    def _described(self, model: str, window: int, facts: Mapping[str, Any]) -> ModelLimits:
        settings = self._settings
        top = facts.get("top_provider") or {}
        inputs = (facts.get("architecture") or {}).get("input_modalities") or ()
        most = settings.output_tokens or top.get("max_completion_tokens") or max(256, window // 4)
        profile: Profile = SMALL if settings.profile == "small" else STANDARD
        return ModelLimits(
            model=model,
            context_tokens=window,
            output_tokens=min(int(most), window),
            profile=profile,
            local=is_local(self._url),
            vision=settings.vision if settings.vision is not None else "image" in inputs,
            tools=settings.tools
            if settings.tools is not None
            else "tools" in (facts.get("supported_parameters") or ()),
        )

    async def _window(self, facts: Mapping[str, Any]) -> int | None:
        """The context length, under the name that this kind of server gives it."""
        meta = facts.get("meta") or {}
        if facts.get("owned_by") == "llamacpp" or "n_ctx_train" in meta:
            self._counts = True
            return meta.get("n_ctx") or await self._window_in_use() or meta.get("n_ctx_train")
        for name in ("max_model_len", "context_length", "context_window", "max_context_length"):
            if str(facts.get(name)).isdigit():
                return int(facts[name])
        return None

    async def _window_in_use(self) -> int | None:
        """llama.cpp's window as it was started: less than what the model was trained for."""
        try:
            props = await self._ask("GET", "/props", root=True)
            return int(props["default_generation_settings"]["n_ctx"])
        except (ModelError, LookupError, TypeError, ValueError):
            return None

    async def _count(self, request: ModelRequest) -> int:
        messages = request_body(request, "", self._dialect, {})["messages"]
        prompt = await self._ask("POST", "/apply-template", {"messages": messages}, root=True)
        body = {"content": prompt["prompt"], "add_special": True, "parse_special": True}
        return len((await self._ask("POST", "/tokenize", body, root=True))["tokens"])

    async def _ask(self, method: str, path: str, body: Any = None, *, root: bool = False) -> dict[str, Any]:
        """A small question with a JSON answer. Raises `ModelError`."""
        url = (self._url.removesuffix("/v1") if root else self._url) + path
        response = await self._send(method, url, body, _ASK_TIMEOUT_S)
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                text = await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise failures.from_exception(error, url=self._url) from error
        finally:
            response.close()
        if response.status != 200:
            raise failures.from_status(response.status, text, url=self._url, headers=response.headers)
        if response.content_type == "text/html":
            raise failures.not_an_api(self._url)
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise failures.garbled(self._url) from error


def _models(listing: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    entries = listing.get("data")
    found = entries if isinstance(entries, list) else []
    return {str(entry["id"]): entry for entry in found if isinstance(entry, dict) and entry.get("id")}


async def _rest(response: aiohttp.ClientResponse) -> str:
    """The body of a refusal, or what can be had of it."""
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            return (await response.content.read(20_000)).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    finally:
        response.close()


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the end of a finished reply, so that its connection can be used again."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            await response.read()
    except TimeoutError:
        return


class _Watch:
    """Ends a silent stream. One timer a stream, not one a token: the hot path only sets a flag."""

    def __init__(self, response: aiohttp.ClientResponse, timeout_s: float) -> None:
        self.alive = True
        self._response = response
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._look)

    def _look(self) -> None:
        if self.alive:
            self.alive = False
            self._timer = self._loop.call_later(self._timeout_s, self._look)
        else:
            self._response.content.set_exception(TimeoutError())

    def end(self) -> None:
        self._timer.cancel()
