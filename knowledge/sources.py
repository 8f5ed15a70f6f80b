"""Where documents come from: a path, a URL, or bytes that somebody handed over. All within limits.

Fetching is done for people who may be strangers, so no address of this machine or its network is ever connected to:
the name is resolved once, every address it has is checked, the connection goes to a checked address and no other, and
each redirect goes through the same again. `allow_private_addresses` is for those who know their readers.
"""

import asyncio
import ipaddress
import re
import socket
import stat
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from bot.errors import (
    AddressRefused,
    SourceLocked,
    SourceNotFound,
    SourceTooLarge,
    SourceTypeUnknown,
    SourceUnreachable,
)
from bot.messages import NewSource
from bot.ports import KnowledgeOptions
from knowledge.extract import READABLE, Raw

MAX_REDIRECTS = 5
_LOGIN_WORDS = ("login", "signin", "sign-in", "sso", "oauth", "saml")
_NO_TEXT = ("image/", "audio/", "video/", "font/")


class Reader:
    """Gets the bytes of a source."""

    def __init__(self, options: KnowledgeOptions) -> None:
        self._options = options

    def address(self, source: NewSource) -> str:
        """What the source is known by: its URL, the name it was handed over under, or its absolute path."""
        if source.content is not None or "://" in source.uri:
            return source.uri
        return str(Path(source.uri).expanduser().absolute())

    async def read(self, source: NewSource) -> Raw:
        """The bytes, with the name and type they came under. Raises `SourceError`."""
        if source.content is not None:
            self._check_size(len(source.content), source.uri)
            raw = Raw(content=source.content, name=_last_part(source.uri), media_type=source.media_type)
        elif "://" in source.uri:
            raw = await self._fetch(source.uri)
        else:
            raw = await asyncio.to_thread(self._read_file, source.uri)
        return replace(raw, title=source.title)

    def _check_size(self, size: int, name: str) -> None:
        most = self._options.max_file_bytes
        if size > most:
            raise SourceTooLarge(f"{name} has {_megabytes(size)}; at most {_megabytes(most)} are learned. Split it.")

    def _read_file(self, uri: str) -> Raw:
        path = Path(uri)
        try:
            path = path.expanduser()
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                raise SourceTypeUnknown(f"{path} is a folder. Name the files in it: {path}/*")
            if not stat.S_ISREG(found.st_mode):
                raise SourceTypeUnknown(f"{path} is not a file. Readable: {READABLE}.")
            self._check_size(found.st_size, path.name)
            with path.open("rb") as file:
                content = file.read(self._options.max_file_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError) as error:
            raise SourceNotFound(f"There is no file {path}. Check the name.") from error
        except PermissionError as error:
            raise SourceNotFound(f"{path} may not be read. Check its permissions.") from error
        except OSError as error:
            raise SourceNotFound(f"{path} cannot be read: {error.strerror or error}.") from error
        self._check_size(len(content), path.name)  # it may have grown
        return Raw(content=content, name=path.name)

    async def _fetch(self, address: str) -> Raw:
        limit = self._options.fetch_timeout_s
        connector = aiohttp.TCPConnector(
            resolver=PublicResolver(allow_private=self._options.allow_private_addresses),
            use_dns_cache=False,
            force_close=True,
        )
        try:
            async with (
                asyncio.timeout(limit),
                aiohttp.ClientSession(
                    connector=connector, trust_env=False, headers={"User-Agent": "Chinwag (learning on request)"}
                ) as session,
            ):
                return await self._follow(session, address)
        except TimeoutError as error:
            raise SourceUnreachable(f"{address} did not answer within {limit:g} s. Try again later.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SourceUnreachable(f"{address} cannot be reached. Check the address and try again.") from error

    async def _follow(self, session: aiohttp.ClientSession, address: str) -> Raw:
        at = address
        for step in range(MAX_REDIRECTS + 1):
            url = checked(at, allow_private=self._options.allow_private_addresses)
            async with session.get(url, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                    at = str(url.join(URL(response.headers["Location"])))
                    continue
                _check_status(response.status, address)
                if step and any(word in url.path.lower() for word in _LOGIN_WORDS):
                    raise SourceLocked(f"{address} asks for a login. Save the page and learn the file.")
                return await self._body(response, url)
        raise SourceUnreachable(f"{address} redirects more than {MAX_REDIRECTS} times. Use the final address.")

    async def _body(self, response: aiohttp.ClientResponse, url: URL) -> Raw:
        if response.content_type.startswith(_NO_TEXT):
            raise SourceTypeUnknown(f"{url} is {response.content_type}. Readable: {READABLE}.")
        self._check_size(response.content_length or 0, str(url))
        content = bytearray()
        async for part in response.content.iter_chunked(1 << 16):
            content += part
            self._check_size(len(content), str(url))
        media_type = response.headers.get("Content-Type", "")
        return Raw(content=bytes(content), name=_last_part(str(url)), media_type=media_type)


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only, so that what was checked is what is connected to."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """All addresses of a name. Raises `AddressRefused` if a single one of them is not public."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results: list[ResolveResult] = []
        for kind, _, protocol, _, where in found:
            if not self._allow_private:
                check_public(str(where[0]), host)
            results.append(
                {
                    "hostname": host,
                    "host": str(where[0]),
                    "port": port,
                    "family": kind,
                    "proto": protocol,
                    "flags": socket.AI_NUMERICHOST,
                }
            )
        return results

    async def close(self) -> None:
        """Nothing is held."""


def checked(address: str, *, allow_private: bool) -> URL:
    """The address as a URL that may be asked; names are checked when they are resolved. Raises `AddressRefused`."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AddressRefused(f"{address} is not a web address. Give one that begins with https:// or http://")
    if parts.username is not None:
        raise AddressRefused("An address with a user name in it is not fetched. Save the page and learn the file.")
    if not allow_private and parts.hostname.rstrip(".").endswith("localhost"):
        check_public("127.0.0.1", parts.hostname)
    try:
        literal = str(ipaddress.ip_address(parts.hostname))
    except ValueError:
        literal = ""
    if literal and not allow_private:
        check_public(literal, parts.hostname)
    if not literal and _NUMERIC.fullmatch(parts.hostname):  # 127.1, 2130706433, 0x7f000001
        raise AddressRefused(f"{parts.hostname} is a number that may hide a private network. Use the site's name.")
    return URL(address)


def check_public(address: str, host: str) -> None:
    """Raises `AddressRefused` unless the address belongs to the public internet, however it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        inner = found.ipv4_mapped or found.sixtofour or nat64 or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            check_public(str(inner), host)
            return
    if not found.is_global or found.is_multicast:
        raise AddressRefused(
            f"{host} is an address inside a private network, which is not fetched."
            " Save the page and learn the file, or see allow_private_addresses."
        )


_NUMERIC = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*\.?", re.IGNORECASE)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _check_status(status: int, address: str) -> None:
    if status in (404, 410):
        raise SourceNotFound(f"There is no page at {address} ({status}). Check the address.")
    if status in (401, 403, 407):
        raise SourceLocked(f"{address} wants a login ({status}). Save the page and learn the file.")
    if status == 429 or status >= 500:
        raise SourceUnreachable(f"{address} answered {status}. Try again later.")
    if status != 200:
        raise SourceUnreachable(f"{address} answered {status} instead of a page. Check the address.")


def _last_part(uri: str) -> str:
    parts = urlsplit(uri) if "://" in uri else None
    path = unquote(parts.path) if parts else uri
    return PurePosixPath(path).name or (parts.netloc if parts else "") or "source"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
