"""Where documents come from, and which addresses are never asked."""

import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import knowledge.sources
from bot.errors import (
    AddressRefused,
    SourceError,
    SourceLocked,
    SourceNotFound,
    SourceTooLarge,
    SourceTypeUnknown,
    SourceUnreachable,
)
from bot.messages import NewSource
from bot.ports import KnowledgeOptions
from knowledge.sources import PublicResolver, Reader, check_public
from tests.standins.web import Site, site


@pytest.fixture
async def web() -> AsyncIterator[Site]:
    async with site() as pages:
        yield pages


def reader(folder: Path, *, private: bool = True, max_bytes: int = 1_000_000, timeout_s: float = 5.0) -> Reader:
    return Reader(
        KnowledgeOptions(
            data_dir=folder, allow_private_addresses=private, max_file_bytes=max_bytes, fetch_timeout_s=timeout_s
        )
    )


async def test_a_file_is_read(tmp_path: Path) -> None:
    """A path gives the file's bytes under its name, and is known by its absolute path."""
    path = tmp_path / "notes.md"
    path.write_text("hello")

    raw = await reader(tmp_path).read(NewSource(uri=str(path), title="My notes"))

    assert (raw.content, raw.name, raw.title) == (b"hello", "notes.md", "My notes")
    assert reader(tmp_path).address(NewSource(uri="notes.md")) == str(Path.cwd() / "notes.md")


async def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    """Nothing there, a folder, a pipe: each says what to do."""
    os.mkfifo(tmp_path / "pipe")
    for uri, error, says in (
        (tmp_path / "no.txt", SourceNotFound, "no file"),
        (tmp_path / "no" / "way.txt", SourceNotFound, "no file"),
        (tmp_path, SourceTypeUnknown, "folder"),
        (tmp_path / "pipe", SourceTypeUnknown, "not a file"),
        ("bad\0name", SourceNotFound, "no file"),
    ):
        with pytest.raises(error, match=says):
            await reader(tmp_path).read(NewSource(uri=str(uri)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    """Missing permission is told apart from a missing file."""
    path = tmp_path / "secret.txt"
    path.write_text("x")
    path.chmod(stat.S_IWUSR)

    with pytest.raises(SourceNotFound, match="permissions"):
        await reader(tmp_path).read(NewSource(uri=str(path)))


async def test_too_large_is_too_large_wherever_it_comes_from(tmp_path: Path, web: Site) -> None:
    """A file, handed-over bytes, a page with a length and one without: none passes the limit."""
    path = tmp_path / "big.txt"
    path.write_bytes(b"x" * 2000)
    sources = (
        NewSource(uri=str(path)),
        NewSource(uri="big.txt", content=b"x" * 2000),
        NewSource(uri=web.page("/big", "x" * 2000)),
        NewSource(uri=web.endless("/endless")),
    )
    for source in sources:
        with pytest.raises(SourceTooLarge, match="at most"):
            await reader(tmp_path, max_bytes=1000).read(source)


async def test_a_page_is_fetched_through_redirects(tmp_path: Path, web: Site) -> None:
    """Redirects are followed, and the page is named after where it was found."""
    web.page("/docs/guide.html", "<p>hello</p>")
    web.redirect("/b", "/docs/guide.html")

    raw = await reader(tmp_path).read(NewSource(uri=web.redirect("/a", web.url + "/b")))

    assert (raw.content, raw.name, raw.media_type) == (b"<p>hello</p>", "guide.html", "text/html")
    assert web.asked == ["/a", "/b", "/docs/guide.html"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (401, SourceLocked),
        (403, SourceLocked),
        (429, SourceUnreachable),
        (500, SourceUnreachable),
        (503, SourceUnreachable),
        (418, SourceUnreachable),
        (204, SourceUnreachable),
    ],
)
async def test_each_refusal_of_a_server_has_its_error(
    tmp_path: Path, web: Site, status: int, error: type[SourceError]
) -> None:
    """What the server says is told in our words, with its number."""
    with pytest.raises(error, match=str(status)):
        await reader(tmp_path).read(NewSource(uri=web.page("/x", "", status=status)))


async def test_endless_redirects_end(tmp_path: Path, web: Site) -> None:
    """A page that redirects to itself is asked six times and given up."""
    with pytest.raises(SourceUnreachable, match="redirects"):
        await reader(tmp_path).read(NewSource(uri=web.redirect("/loop", "/loop")))

    assert len(web.asked) == 6


async def test_a_redirect_to_a_login_is_not_learned(tmp_path: Path, web: Site) -> None:
    """A login form is not the page that was asked for."""
    web.page("/login", "<form><input type=password></form>")

    with pytest.raises(SourceLocked, match="login"):
        await reader(tmp_path).read(NewSource(uri=web.redirect("/wiki", "/login?next=/wiki")))


async def test_a_picture_is_not_fetched(tmp_path: Path, web: Site) -> None:
    """What cannot be read is refused by its type."""
    with pytest.raises(SourceTypeUnknown, match="image/png"):
        await reader(tmp_path).read(NewSource(uri=web.page("/a.png", b"x", content_type="image/png")))


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, web: Site) -> None:
    """The wait has an end, and so has a dead port."""
    with pytest.raises(SourceUnreachable, match=r"within 0.2 s"):
        await reader(tmp_path, timeout_s=0.2).read(NewSource(uri=web.silent("/slow")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SourceUnreachable, match="cannot be reached"):
            await reader(tmp_path).read(NewSource(uri=f"http://127.0.0.1:{taken.getsockname()[1]}/"))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "localhost",
        "a.localhost",
        "localhost.",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fc00::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
async def test_private_addresses_are_refused_however_they_are_written(tmp_path: Path, web: Site, host: str) -> None:
    """By default nothing inside this machine or its network is asked."""
    port = web.url.rpartition(":")[2]

    with pytest.raises(AddressRefused, match="private network"):
        await reader(tmp_path, private=False).read(NewSource(uri=f"http://{host}:{port}/"))

    assert web.asked == []


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "ftp://example.org/a", "gopher://x/", "http://", "http://u:p@h/"]
)
async def test_only_plain_web_addresses_are_fetched(tmp_path: Path, uri: str) -> None:
    """Other schemes, no host, or a user name in the address are refused, even for the trusting."""
    with pytest.raises(AddressRefused):
        await reader(tmp_path).read(NewSource(uri=uri))


@pytest.mark.parametrize("target", ["http://10.0.0.1/", "http://127.1/", "file:///etc/passwd", "//169.254.169.254/x"])
async def test_a_redirect_is_checked_like_the_first_address(
    tmp_path: Path, web: Site, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """A public page that redirects into the private network is not followed. The stand-in passes for public here."""

    def check(address: str, host: str) -> None:
        if host != "127.0.0.1":
            check_public(address, host)

    monkeypatch.setattr(knowledge.sources, "check_public", check)

    with pytest.raises(AddressRefused):
        await reader(tmp_path, private=False).read(NewSource(uri=web.redirect("/go", target)))

    assert web.asked == ["/go"]


async def test_a_name_with_one_private_address_is_refused() -> None:
    """The resolver gives no address at all of a name that leads inside."""
    with pytest.raises(AddressRefused):
        await PublicResolver(allow_private=False).resolve("127.1", 80)

    assert await PublicResolver(allow_private=True).resolve("127.1", 80)


def test_public_addresses_pass() -> None:
    """Ordinary addresses of the internet are let through."""
    for address in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"):
        check_public(address, "example.org")
