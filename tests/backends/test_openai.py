"""The chat-completions wire, against a server on loopback that does what real ones were seen to do."""

import asyncio
import http
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import failures
from backends.chat_wire import Dialect, Reply, request_body
from backends.openai import OpenAIBackend, base_url, is_local, open_client
from bot import errors
from bot.messages import (
    ChatMessage,
    Finished,
    Image,
    ModelRequest,
    Piece,
    Reasoning,
    Text,
    ToolCall,
    ToolSpec,
    Usage,
)
from bot.ports import BackendOptions
from tests.standins.openai_server import OpenAIServer, Scripted, answer, chunk, event, openai_server, usage

SPEC = Path(__file__).parents[2] / "../shared/data/specs/openai-openapi.json"


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as server:
        yield server


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[OpenAIBackend]:
    given = {"model": "stand-in", **options}
    async with open_client(BackendOptions(name="openai", data_dir=Path(), base_url=url, **given)) as backend:
        yield backend


def asking(text: str = "Hello", **more: Any) -> ModelRequest:
    return ModelRequest(messages=(ChatMessage(role="user", content=text),), **{"max_tokens": 100, **more})


async def collect(backend: OpenAIBackend, request: ModelRequest) -> list[Piece]:
    return [piece async for piece in backend.stream(request)]


async def keep(backend: OpenAIBackend, pieces: list[Piece]) -> None:
    async for piece in backend.stream(asking()):
        pieces.append(piece)  # noqa: PERF401 - what came before an error counts


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


# --- what comes back ----------------------------------------------------------------------------


async def test_text_usage_and_finish_arrive_in_order(server: OpenAIServer) -> None:
    """Text as it came, then the counts, then the finish with the server's name for the model."""
    server.say(answer("Hel", "lo ", "wörld", " 你好"))
    async with client(server.url) as backend:
        pieces = await collect(backend, asking())

    assert [p.text for p in pieces if isinstance(p, Text)] == ["Hel", "lo ", "wörld", " 你好"]
    assert pieces[-2:] == [Usage(prompt_tokens=12, completion_tokens=4), Finished(reason="stop", model="stand-in")]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_chunk_borders_do_not_matter(server: OpenAIServer, size: int) -> None:
    """Whatever the network makes of the bytes, the text is the same."""
    wire = answer("a\u2028b", ' "quoted" \\ \n', "ü", "plain").replace(b"data: ", b"data:")
    server.say(Scripted(writes=[wire[n : n + size] for n in range(0, len(wire), size)]))
    async with client(server.url) as backend:
        assert text_of(await collect(backend, asking())) == 'a\u2028b "quoted" \\ \nüplain'


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=12))
def test_the_short_way_gives_what_the_json_parser_gives(words: list[str]) -> None:
    """Whatever the words are, skipping the parser never changes, loses or adds a letter."""
    reply = Reply("http://x")
    seen = [
        piece.text
        for word in words
        for ascii_only in (True, False)
        for piece in reply.take(json.dumps(chunk(word), ensure_ascii=ascii_only).encode())
        if isinstance(piece, Text)
    ]

    assert seen == [word for word in words for _ in (1, 2)]


async def test_a_stream_may_end_without_its_mark(server: OpenAIServer) -> None:
    """After a finish reason, the missing [DONE] is no fault."""
    server.say(answer("fine", done=False))
    async with client(server.url) as backend:
        assert (await collect(backend, asking()))[-1] == Finished(reason="stop", model="stand-in")


async def test_a_stream_that_ends_in_the_middle_is_an_error(server: OpenAIServer) -> None:
    """What came is handed on, then the cut is told."""
    server.say(Scripted(writes=[event(chunk("half"))]), Scripted(writes=[event(chunk("half"))], cut=True))
    async with client(server.url) as backend:
        for _ in range(2):
            pieces: list[Piece] = []
            with pytest.raises(errors.ModelBroke):
                await keep(backend, pieces)
            assert text_of(pieces) == "half"


async def test_an_event_that_is_no_json_is_an_error(server: OpenAIServer) -> None:
    """Garbage is told, not skipped."""
    server.say(b"data: {nonsense\n\n", b'data: ["a list"]\n\n', b'data: {"choices": [7]}\n\n')
    async with client(server.url) as backend:
        for _ in range(3):
            with pytest.raises(errors.ModelBroke):
                await collect(backend, asking())


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thinking_is_kept_apart(server: OpenAIServer, field: str) -> None:
    """Both names that servers give it."""
    server.say(event(chunk(delta={field: "hm", "content": None})) + answer("42"))
    async with client(server.url) as backend:
        pieces = await collect(backend, asking())

    assert pieces[0] == Reasoning("hm")
    assert text_of(pieces) == "42"


async def test_tool_calls_are_put_together(server: OpenAIServer) -> None:
    """Two calls whose pieces come mixed; the finish says so even when the server says "stop"."""
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 1, "id": "b", "function": {"name": "find", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": '{"q":1}'}},
        {"index": 1, "function": {"name": None, "arguments": ":2}"}},
    ]
    server.say(b"".join(event(chunk(delta={"tool_calls": [part]})) for part in parts) + answer())
    async with client(server.url) as backend:
        pieces = await collect(backend, asking())

    assert [p for p in pieces if isinstance(p, ToolCall)] == [
        ToolCall(id="a", name="look", arguments='{"q":1}'),
        ToolCall(id="b", name="find", arguments='{"x":2}'),
    ]
    assert pieces[-1] == Finished(reason="tool_calls", model="stand-in")


async def test_a_reply_that_was_not_streamed_is_taken(server: OpenAIServer) -> None:
    """Some gateways ignore `stream`."""
    whole = chunk(finish="length", usage={"prompt_tokens": 3, "completion_tokens": 1})
    whole["choices"] = [{"message": {"role": "assistant", "content": "All at once"}, "finish_reason": "length"}]
    server.say(Scripted(writes=[json.dumps(whole).encode()], content_type="application/json"))
    async with client(server.url) as backend:
        pieces = await collect(backend, asking())

    assert pieces == [
        Text("All at once"),
        Usage(prompt_tokens=3, completion_tokens=1),
        Finished(reason="length", model="stand-in"),
    ]


@pytest.mark.parametrize(("said", "meant"), [("stop_sequence", "stop"), ("eos_token", "stop"), ("length", "length")])
async def test_finish_reasons_are_translated(server: OpenAIServer, said: str, meant: str) -> None:
    """Words of other servers become ours."""
    server.say(answer("x", finish=said))
    async with client(server.url) as backend:
        finished = (await collect(backend, asking()))[-1]

    assert isinstance(finished, Finished)
    assert finished.reason == meant


async def test_a_finished_connection_is_used_again(server: OpenAIServer) -> None:
    """The next question does not pay for a new connection."""
    async with client(server.url) as backend:
        for _ in range(3):
            await collect(backend, asking())

    assert len(server.connections) == 1


# --- what is sent -------------------------------------------------------------------------------


def everything() -> ModelRequest:
    call = ToolCall(id="c1", name="look", arguments="{}")
    return ModelRequest(
        messages=(
            ChatMessage(role="system", content="Be Joey."),
            ChatMessage(role="user", content="See", images=(Image(media_type="image/png", data=b"\x89PNG"),)),
            ChatMessage(role="assistant", content="", tool_calls=(call,)),
            ChatMessage(role="tool", content="42", tool_call_id="c1"),
        ),
        max_tokens=50,
        temperature=0.0,
        stop=("END",),
        seed=7,
        json_schema={"type": "object", "properties": {}},
        tools=(ToolSpec(name="look", description="looks", parameters={"type": "object", "properties": {}}),),
        conversation="abc",
    )


async def test_everything_in_a_request_is_sent(server: OpenAIServer) -> None:
    """Pictures as data, tools, schema, stop, seed, and the settings' own fields and headers over ours."""
    extra = {
        "extra_body": {"top_k": 5, "seed": 8},
        "extra_headers": {"X-Team": "a"},
        "conversation_field": "user",
        "cache_dir": "of no use here",
    }
    async with client(server.url, api_key="k", extra=extra) as backend:
        await collect(backend, everything())

    body, headers = server.requests[0], server.headers[0]
    assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="
    assert body["messages"][2]["content"] is None
    assert body["messages"][3]["tool_call_id"] == "c1"
    assert (body["top_k"], body["seed"], body["user"], body["stop"], body["temperature"]) == (5, 8, "abc", ["END"], 0.0)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object", "properties": {}}
    assert body["stream_options"] == {"include_usage": True}
    assert (headers["Authorization"], headers["X-Team"]) == ("Bearer k", "a")


def test_requests_follow_the_published_description() -> None:
    """Every field we send exists in OpenAI's API description."""
    if not SPEC.exists():
        pytest.skip("the API description is not beside the repository")
    schemas = json.loads(SPEC.read_text())["components"]["schemas"]

    def fields(name: str) -> set[str]:
        schema = schemas[name]
        found = set(schema.get("properties", ()))
        for part in schema.get("allOf", ()):
            found |= fields(part["$ref"].rsplit("/", 1)[1]) if "$ref" in part else set(part.get("properties", ()))
        return found

    body = request_body(everything(), "m", Dialect(), {})
    newer = request_body(everything(), "m", Dialect(token_field="max_completion_tokens"), {})

    assert set(body) | set(newer) <= fields("CreateChatCompletionRequest")
    for message, name in zip(body["messages"], ("System", "User", "Assistant", "Tool"), strict=True):
        assert set(message) <= fields(f"ChatCompletionRequest{name}Message")


@pytest.mark.parametrize(
    ("complaint", "gone", "instead"),
    [
        ("Unrecognized request argument: stream_options", "stream_options", None),
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "max_tokens",
            "max_completion_tokens",
        ),
        ("Unsupported value: 'temperature' does not support 0 with this model.", "temperature", None),
    ],
)
async def test_a_refused_field_is_left_out(
    server: OpenAIServer, complaint: str, gone: str, instead: str | None
) -> None:
    """The server's refusal is learned: asked once more without, and never with it again."""
    refusal = json.dumps({"error": {"message": complaint}}).encode()
    server.say(Scripted(writes=[refusal], status=400, content_type="application/json"))
    async with client(server.url) as backend:
        for _ in range(2):
            assert text_of(await collect(backend, asking(temperature=0.0))) == "You said: Hello"

    first, second, third = server.requests
    assert gone in first
    assert gone not in second
    assert gone not in third
    assert instead is None or instead in second


# --- what goes wrong ----------------------------------------------------------------------------


def test_every_status_has_a_row() -> None:
    """The table knows every status that Python knows from 300 on."""
    assert [status for status in http.HTTPStatus if status >= 300 and status not in failures.STATUS] == []


def test_every_error_has_a_sentence() -> None:
    """Each error that a row can become has a sentence, and each sentence can be filled."""
    kinds = {*failures.STATUS.values(), *(kind for _, kind, _ in failures.EXCEPTIONS)}
    for kind in kinds:
        line = str(failures._error(kind, "http://u", "why"))
        assert "{" not in line
        assert "\n" not in line


def test_every_aiohttp_exception_has_a_row() -> None:
    """A new exception in aiohttp fails here and not in somebody's chat. The root alone has none, on purpose."""

    def below(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {kind for kind in below(aiohttp.ClientError) if kind.__module__.startswith("aiohttp")} - {
        aiohttp.ClientError
    }
    rows = tuple(foreign for foreign, _, _ in failures.EXCEPTIONS)

    assert [kind.__name__ for kind in ours if not issubclass(kind, rows)] == []


@pytest.mark.parametrize(
    ("status", "body", "kind", "quoted"),
    [
        (400, '{"error":{"message":"bad field","code":null}}', errors.ModelRefusedRequest, "bad field"),
        (400, '{"error":{"message":"no","code":"context_length_exceeded"}}', errors.PromptTooLong, "no"),
        (
            400,
            '{"object":"error","message":"This model\'s maximum context length is 4096"}',
            errors.PromptTooLong,
            "4096",
        ),
        (400, '{"error":{"type":"exceed_context_size_error","message":"request exceeds"}}', errors.PromptTooLong, ""),
        (401, '{"error":{"message":"Incorrect API key provided: sk-abcd"}}', errors.ModelRefusedKey, "401"),
        (403, "", errors.ModelRefusedKey, "403"),
        (404, '{"error":"model \'x\' not found"}', errors.ModelUnknown, "not found"),
        (408, "", errors.ModelTimedOut, ""),
        (413, "Failed to buffer the request body", errors.PromptTooLong, "buffer"),
        (422, '{"error":"Input validation error: `inputs` must have less than 10 tokens."}', errors.PromptTooLong, ""),
        (422, '{"detail":[{"loc":["body"],"msg":"nope"}]}', errors.ModelRefusedRequest, "nope"),
        (429, '{"error":{"message":"slow down"}}', errors.ModelOverloaded, "slow down"),
        (500, "oops", errors.ModelBroke, "oops"),
        (502, "<html>Bad Gateway</html>", errors.ModelUnreachable, "502"),
        (503, '{"error":{"message":"Loading model"}}', errors.ModelOverloaded, "Loading model"),
        (504, "", errors.ModelTimedOut, ""),
        (599, "", errors.ModelBroke, "599"),
    ],
)
async def test_refusals_become_our_errors(
    server: OpenAIServer, status: int, body: str, kind: type[errors.ModelError], quoted: str
) -> None:
    """One line that quotes the server, never a key and never a web page."""
    server.say(Scripted(writes=[body.encode()], status=status, content_type="application/json"))
    async with client(server.url) as backend:
        with pytest.raises(errors.ModelError) as caught:
            await collect(backend, asking())

    assert type(caught.value) is kind
    assert quoted in str(caught.value)
    assert "sk-" not in str(caught.value)
    assert "<html" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({"retry-after-ms": "250"}, 0.25), ({"Retry-After": "soon"}, None), ({}, None)],
)
async def test_the_wish_to_be_asked_later_is_kept(
    server: OpenAIServer, headers: dict[str, str], seconds: float | None
) -> None:
    """In seconds, however it was written."""
    server.say(Scripted(status=429, headers=headers))
    async with client(server.url) as backend:
        with pytest.raises(errors.ModelOverloaded) as caught:
            await collect(backend, asking())

    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"error": {"message": "Model is overloaded", "http_status_code": 422}}, errors.ModelOverloaded),
        ({"error": {"message": "boom", "code": 500}}, errors.ModelBroke),
        ({"error": "the maximum context length is 10"}, errors.PromptTooLong),
        ({"object": "error", "message": "bad", "code": 400}, errors.ModelRefusedRequest),
        ({"error": {"message": "gone", "code": "server_error"}}, errors.ModelBroke),
    ],
)
async def test_an_error_inside_the_stream_is_one(
    server: OpenAIServer, payload: dict[str, Any], kind: type[errors.ModelError]
) -> None:
    """A 200 that turns bad after some text ends in our error."""
    server.say(event(chunk("so far")) + event(payload) + event("[DONE]"))
    async with client(server.url) as backend:
        with pytest.raises(errors.ModelError) as caught:
            await collect(backend, asking())

    assert type(caught.value) is kind


async def test_a_web_page_is_no_answer(server: OpenAIServer) -> None:
    """A login page with status 200 points at the address."""
    server.say(Scripted(writes=[b"<html>Sign in</html>"], content_type="text/html"))
    async with client(server.url) as backend:
        with pytest.raises(errors.ModelUnreachable, match="CHINWAG_BASE_URL"):
            await collect(backend, asking())


async def test_nobody_at_the_address() -> None:
    """A refused connection names the address and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with client(f"http://127.0.0.1:{port}") as backend:
        with pytest.raises(errors.ModelUnreachable, match=rf"127\.0\.0\.1:{port}.*CHINWAG_BASE_URL"):
            await collect(backend, asking())
        assert not (await backend.health()).ok


async def test_https_spoken_to_plain_http(server: OpenAIServer) -> None:
    """A TLS failure is told as such."""
    async with client(server.url.replace("http:", "https:")) as backend:
        with pytest.raises(errors.ModelUnreachable, match="TLS"):
            await collect(backend, asking())


async def test_silence_ends_a_stream(server: OpenAIServer) -> None:
    """Before the first piece or after it: silence for `timeout_s` is an error, and the request is given up."""
    server.say(Scripted(writes=[event(chunk("a"))], hang=True))
    async with client(server.url, timeout_s=0.15) as backend:
        started = time.monotonic()
        with pytest.raises(errors.ModelTimedOut):
            await collect(backend, asking())

    assert time.monotonic() - started < 2
    await asyncio.wait_for(server.disconnected.wait(), 2)


async def test_keep_alive_comments_are_signs_of_life(server: OpenAIServer) -> None:
    """A server that is thinking says so by comments; it is not given up."""
    quiet = Scripted(writes=[b": ping\n\n", answer("slow")])
    server.say(quiet)
    async with client(server.url, timeout_s=5) as backend:
        assert text_of(await collect(backend, asking())) == "slow"


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_early_ends_the_request(server: OpenAIServer, how: str) -> None:
    """Closing the iterator or cancelling the task closes the connection, so that the server stops writing."""
    server.say(Scripted(writes=[event(chunk("a"))], hang=True))
    async with client(server.url) as backend:
        first = asyncio.Event()

        async def listen() -> None:
            async with aclosing(backend.stream(asking())) as pieces:
                async for _ in pieces:
                    first.set()
                    if how == "close":
                        return

        task = asyncio.create_task(listen())
        await asyncio.wait_for(first.wait(), 2)
        if how == "cancel":
            task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(server.disconnected.wait(), 2)


# --- what the server tells ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "window"),
    [
        ({"max_model_len": 32768}, 32768),
        ({"context_length": 1000, "top_provider": {"max_completion_tokens": 300}}, 1000),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 131072, "n_ctx": 2048}}, 2048),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 131072}}, 512),
        ({}, 8192),
    ],
)
async def test_the_window_comes_from_the_server(server: OpenAIServer, facts: dict[str, Any], window: int) -> None:
    """Under every name that servers give it; asked once."""
    server.models = [{"id": "stand-in", **facts}]
    server.props = {"default_generation_settings": {"n_ctx": 512}}
    async with client(server.url) as backend:
        limits = await backend.limits()
        assert await backend.limits() is limits

    assert limits.context_tokens == window
    assert limits.output_tokens <= window
    assert limits.local
    assert server.asked_for_models == 1


async def test_a_smaller_window_can_be_set(server: OpenAIServer) -> None:
    """The setting narrows what the server tells, and stands in where it tells nothing."""
    async with client(server.url, context_tokens=1024) as backend:
        assert (await backend.limits()).context_tokens == 1024
    server.models = None
    async with client(server.url, context_tokens=50_000) as backend:
        assert (await backend.limits()).context_tokens == 50_000


async def test_the_only_model_needs_no_name(server: OpenAIServer) -> None:
    """One model is taken; of several, the names are told."""
    async with client(server.url, model="") as backend:
        await collect(backend, asking())
    assert server.requests[0]["model"] == "stand-in"
    server.models = [{"id": "a"}, {"id": "b"}]
    async with client(server.url, model="") as backend:
        with pytest.raises(errors.ModelUnknown, match=r"CHINWAG_MODEL.*a, b"):
            await backend.limits()


async def test_llama_cpp_counts_by_itself(server: OpenAIServer) -> None:
    """Where the server has a tokenizer, it is asked."""
    server.models = [{"id": "stand-in", "owned_by": "llamacpp", "meta": {"n_ctx": 512, "n_ctx_train": 512}}]
    async with client(server.url) as backend:
        await backend.limits()
        assert await backend.count_tokens(asking("one two three")) == 4


async def test_the_estimate_learns_from_reported_usage(server: OpenAIServer) -> None:
    """A server that counts twice as many tokens moves our estimate towards its own."""
    request = asking("word " * 200)
    async with client(server.url) as backend:
        before = await backend.count_tokens(request)
        for _ in range(8):
            server.say(event(chunk("x", finish="stop")) + event(usage(before * 2, 1)) + event("[DONE]"))
            await collect(backend, request)
        after = await backend.count_tokens(request)

    assert before * 1.8 < after <= before * 2


async def test_health_names_what_is_wrong(server: OpenAIServer) -> None:
    """A model that the server does not have is told with the ones it has."""
    async with client(server.url, model="other") as backend:
        health = await backend.health()
    assert not health.ok
    assert "stand-in" in health.fix
    async with client(server.url) as backend:
        assert (await backend.health()).ok


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("", "https://api.openai.com/v1"),
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("http://h/api/v1/chat/completions", "http://h/api/v1"),
    ],
)
def test_addresses_are_taken_as_people_write_them(setting: str, url: str) -> None:
    """With or without the version, with or without the last part."""
    assert base_url(setting) == url


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://localhost", True),
        ("http://[::1]/", True),
        ("https://a.example", False),
        ("http://10.0.0.1", False),
    ],
)
def test_what_stays_on_this_machine(url: str, local: bool) -> None:
    """Loopback only."""
    assert is_local(url) is local
