"""One table for every way in which a model server can fail, and the errors of ours that they become.

Status numbers, the texts by which servers name a prompt that is too long, and aiohttp's exceptions are translated here
and nowhere else; tests fail when a status or an exception has no row.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from bot.errors import (
    ModelBroke,
    ModelError,
    ModelOverloaded,
    ModelRefusedKey,
    ModelRefusedRequest,
    ModelTimedOut,
    ModelUnknown,
    ModelUnreachable,
    PromptTooLong,
)

STATUS: dict[int, type[ModelError]] = {
    **dict.fromkeys((300, 301, 302, 303, 304, 305, 307, 308), ModelUnreachable),
    **dict.fromkeys((400, 411, 412, 414, 415, 416, 417, 422, 428, 431), ModelRefusedRequest),
    **dict.fromkeys((401, 403, 407, 511), ModelRefusedKey),
    **dict.fromkeys((404, 410), ModelUnknown),
    **dict.fromkeys((405, 406, 418, 421, 426, 451, 501, 505, 506, 510), ModelRefusedRequest),
    **dict.fromkeys((402, 409, 423, 425, 429, 503, 507, 529), ModelOverloaded),
    413: PromptTooLong,
    **dict.fromkeys((408, 504, 524), ModelTimedOut),
    **dict.fromkeys((424, 500, 508), ModelBroke),
    **dict.fromkeys((502, 520, 521, 522, 523, 530), ModelUnreachable),
}
"""402 is a spent budget; 424 and 500 are generations that failed; 520 to 530 are proxies that reach nobody."""

EXCEPTIONS: tuple[tuple[type[Exception], type[ModelError], str], ...] = (
    (aiohttp.ClientConnectorDNSError, ModelUnreachable, "the host name is not known"),
    (aiohttp.ClientConnectorCertificateError, ModelUnreachable, "its TLS certificate is not trusted"),
    (aiohttp.ClientSSLError, ModelUnreachable, "it does not speak TLS as expected"),
    (aiohttp.ServerFingerprintMismatch, ModelUnreachable, "its TLS certificate is another one"),
    (aiohttp.ClientProxyConnectionError, ModelUnreachable, "the proxy does not answer"),
    (aiohttp.ClientHttpProxyError, ModelUnreachable, "the proxy refused"),
    (aiohttp.ConnectionTimeoutError, ModelUnreachable, "no connection in time"),
    (aiohttp.ClientConnectorError, ModelUnreachable, "the connection was refused"),
    (aiohttp.ServerTimeoutError, ModelTimedOut, ""),
    (asyncio.TimeoutError, ModelTimedOut, ""),
    (aiohttp.InvalidURL, ModelUnreachable, "that is not an address"),
    (aiohttp.NonHttpUrlClientError, ModelUnreachable, "that is not an address"),
    (aiohttp.RedirectClientError, ModelUnreachable, "it redirects to nowhere"),
    (aiohttp.TooManyRedirects, ModelUnreachable, "it redirects in circles"),
    (aiohttp.UploadAbortedError, ModelBroke, "the connection was cut"),
    (aiohttp.ClientResponseError, ModelBroke, "the reply was garbled"),
    (aiohttp.ClientPayloadError, ModelBroke, "the connection was cut"),
    (aiohttp.ServerConnectionError, ModelBroke, "the connection was cut"),
    (aiohttp.ClientOSError, ModelBroke, "the connection was cut"),
    (aiohttp.ClientConnectionError, ModelBroke, "the connection was cut"),
    (aiohttp.WSMessageTypeError, ModelBroke, "the reply was garbled"),
    (OSError, ModelBroke, "the connection was cut"),
    (ValueError, ModelBroke, "the reply was garbled"),
)
"""The first row that fits counts, so the special stands before the general. The word fills the sentence."""

_SENTENCES: dict[type[ModelError], str] = {
    ModelUnreachable: "No model answers at {url} ({why}). Is the server running? Check CHINWAG_BASE_URL.",
    ModelOverloaded: "The model server is busy or its budget is spent ({why}). Try again in a moment.",
    ModelTimedOut: "The model at {url} gave no sign of life in time. Try again, or raise timeout_s.",
    ModelBroke: "The model's answer broke off ({why}). Try again.",
    ModelRefusedKey: "The model server refused the key ({why}). Check CHINWAG_API_KEY.",
    ModelUnknown: "The server has no such model or path ({why}). Check CHINWAG_MODEL and CHINWAG_BASE_URL.",
    PromptTooLong: "The message and its context are too long for this model ({why}). Shorten it, or clear the memory.",
    ModelRefusedRequest: "The model server refused the request ({why}). Check the backend's settings.",
}

_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (length|window|size)|too many tokens"
    r"|prompt is too long|input is too long|must have less than \d+ tokens|must be <=? \d+\. Given"
    r"|max_input_(length|tokens)|tokens? limit exceeded|exceeds? the (model|maximum).{0,20}tokens",
    re.IGNORECASE,
)
_BUSY = re.compile(r"overloaded|rate.?limit|too many requests|insufficient_quota|no free slots", re.IGNORECASE)
_KEY = re.compile(r"invalid.{0,3}api.{0,3}key|authentication_error|incorrect api key", re.IGNORECASE)


def from_status(status: int, text: str, *, url: str, headers: Mapping[str, str]) -> ModelError:
    """The error for a refused request. `text` is the body, JSON or not."""
    what = said(text)
    kind = STATUS.get(status) or (ModelBroke if status >= 500 else ModelRefusedRequest)
    if status in (400, 413, 422, 500) and _TOO_LONG.search(text):
        kind = PromptTooLong
    quoted = what if kind is not ModelRefusedKey else ""  # such texts repeat a part of the key
    why = f"HTTP {status}{': ' if quoted else ''}{quoted}"
    return _error(kind, url, why, retry_after_s=retry_after(headers))


def from_event(payload: Any, *, url: str) -> ModelError:
    """The error for one that arrives inside a stream that had begun with 200."""
    text = json.dumps(payload, ensure_ascii=False)
    detail = payload.get("error", payload)
    code = str(detail.get("http_status_code") or detail.get("code")) if isinstance(detail, dict) else ""
    if _TOO_LONG.search(text):
        kind: type[ModelError] = PromptTooLong
    elif _BUSY.search(text):
        kind = ModelOverloaded
    elif _KEY.search(text):
        kind = ModelRefusedKey
    else:
        kind = STATUS.get(int(code), ModelBroke) if code.isdigit() else ModelBroke
    return _error(kind, url, said(text) if kind is not ModelRefusedKey else "in the stream")


def from_exception(error: Exception, *, url: str) -> ModelError:
    """The error for a connection that failed. An exception without a row is a bug of ours, and travels on."""
    for foreign, kind, why in EXCEPTIONS:
        if isinstance(error, foreign):
            return _error(kind, url, why)
    raise error


def not_an_api(url: str) -> ModelError:
    """The error for a web page where JSON was expected."""
    return _error(ModelUnreachable, url, "a web page came back, not a model's answer")


def cut(url: str) -> ModelError:
    """The error for a stream that ended in the middle."""
    return _error(ModelBroke, url, "the stream ended too early")


def garbled(url: str) -> ModelError:
    """The error for an event that is not what the wire format says."""
    return _error(ModelBroke, url, "the reply was garbled")


def said(body: str) -> str:
    """The server's own words in an error body, in one short line; nothing from a web page."""
    try:
        payload = json.loads(body)
    except ValueError:
        payload = body if "<html" not in body[:500].lower() and "<!doctype" not in body[:500].lower() else ""
    while isinstance(payload, dict):
        payload = next((payload[key] for key in ("error", "message", "detail", "error_type") if payload.get(key)), "")
    line = " ".join(str(payload).split()).rstrip(".")
    return line if len(line) <= 200 else line[:199] + "…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server wants to be asked again, when it says so."""
    if (milliseconds := headers.get("retry-after-ms", "")).replace(".", "", 1).isdigit():
        return float(milliseconds) / 1000
    value = headers.get("Retry-After", "")
    if value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _error(kind: type[ModelError], url: str, why: str, *, retry_after_s: float | None = None) -> ModelError:
    return kind(_SENTENCES[kind].format(url=url, why=why), retry_after_s=retry_after_s)
