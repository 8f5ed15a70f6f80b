"""The data folder: made private, checked for space, and owned by one process at a time."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bot.errors import DataFolderBusy, DataFolderError, StorageFull

LEAST_FREE_BYTES = 20_000_000


def prepare(path: Path) -> Path:
    """Create the folder, readable by its owner only. Raises `DataFolderError`, `StorageFull`."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = path / ".writable"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        if _is_full(error):
            raise StorageFull(f"No space is left in {path}. Free some, then start again; nothing was lost.") from error
        raise DataFolderError(
            f"The data folder {path} cannot be used ({error.strerror}). Give it to this user, "
            "or choose another with CHINWAG_DATA_DIR."
        ) from error
    if shutil.disk_usage(path).free < LEAST_FREE_BYTES:
        raise StorageFull(
            f"Less than {LEAST_FREE_BYTES // 1_000_000} MB is free in {path}. Free some, then start again."
        )
    return path


@contextlib.contextmanager
def owned(path: Path, *, by: str) -> Iterator[Path]:
    """Hold the folder for this process. Raises `DataFolderBusy` naming who holds it."""
    from filelock import FileLock, Timeout

    prepare(path)
    owner = path / "owner"
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text().strip() if owner.exists() else "another process"
        raise DataFolderBusy(
            f"{who} is using {path}. End it first, or give this one its own folder with CHINWAG_DATA_DIR."
        ) from None
    try:
        owner.write_text(f"chinwag {by} (process {os.getpid()})\n")
        yield path
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _is_full(error: OSError) -> bool:
    import errno

    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
