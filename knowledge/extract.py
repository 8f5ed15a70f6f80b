"""From a file's bytes to a document, in a process of its own.

A hostile file can block, crash or fill the memory of whoever reads it, so each file gets a short-lived process
(`python -m knowledge.extract`) under limits of time and memory, a few at a time. Its death is the file's error.

| kind | read by | kept |
| --- | --- | --- |
| PDF | kreuzberg (pdfium) | headings, lines, page numbers; repeated page heads and feet go |
| web page | trafilatura | headings, lists, tables; navigation and footer go |
| Word, PowerPoint, Excel, OpenDocument, RTF, EPUB, notebook | kreuzberg | headings, tables |
| text, Markdown, CSV, JSON, source code | here | everything; the encoding is recognised |
"""

import asyncio
import json
import re
import resource
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from bot import errors
from bot.errors import (
    MissingExtra,
    SourceDamaged,
    SourceEmpty,
    SourceError,
    SourceLocked,
    SourceTooLarge,
    SourceTypeUnknown,
)
from knowledge import markdown
from knowledge.chunks import Block, Document
from knowledge.process import module_environment

TIME_LIMIT_S = 60.0
MEMORY_LIMIT_BYTES = 2 << 30
TEXT_LIMIT_CHARS = 10_000_000
AT_ONCE = 2

READABLE = "text, Markdown, web pages, PDF, Word, PowerPoint, Excel, OpenDocument, RTF, EPUB, notebooks"
_PDF, _HTML, _TEXT = "application/pdf", "text/html", "text/plain"
_OFFICE = {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".epub": "application/epub+zip",
    ".rtf": "application/rtf",
    ".ipynb": "application/x-ipynb+json",
}
_LOCK_WORDS = ("password", "encrypt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """Bytes with what is known about them: the name they came under, and the type that a server claimed."""

    content: bytes
    name: str
    media_type: str = ""
    title: str = ""


class Extractor:
    """Reads files in processes of their own, at most `at_once` at a time."""

    def __init__(
        self, *, at_once: int = AT_ONCE, time_limit_s: float = TIME_LIMIT_S, memory_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        self._turn = asyncio.Semaphore(at_once)
        self._time_limit_s, self._memory_bytes = time_limit_s, memory_bytes

    async def extract(self, raw: Raw) -> Document:
        """The document in these bytes. Raises `SourceError`, and `MissingExtra` when a reader is not installed."""
        if not raw.content.strip():
            raise SourceEmpty(f"{raw.name} is empty.")
        kind(raw)
        async with self._turn:
            answer = await self._ask(raw)
        if "error" in answer:
            raise _error(answer["error"], answer["message"])
        blocks = tuple(Block(**block) for block in answer["blocks"])
        return Document(title=raw.title or answer["title"], blocks=blocks, pages=answer["pages"])

    async def _ask(self, raw: Raw) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "knowledge.extract", str(self._memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=module_environment() | {"MALLOC_ARENA_MAX": "2"},
        )
        head = {"name": raw.name, "media_type": raw.media_type}
        try:
            async with asyncio.timeout(self._time_limit_s):
                out, _ = await process.communicate(json.dumps(head).encode() + b"\n" + raw.content)
        except TimeoutError as error:
            raise SourceTooLarge(
                f"{raw.name} took longer than {self._time_limit_s:.0f} s to read. Split it and learn the parts."
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or not out:
            raise SourceDamaged(f"{raw.name} cannot be read: the reader gave up on it. Save it anew and try again.")
        answer: dict[str, Any] = json.loads(out)
        return answer


def _error(name: str, message: str) -> Exception:
    found = getattr(errors, name, SourceDamaged)
    error: Exception = found(message)
    return error


def kind(raw: Raw) -> str:
    """What the bytes are, by themselves first and by name second. Raises `SourceTypeUnknown`, `SourceDamaged`."""
    head, suffix = raw.content[:1024].lstrip(), PurePosixPath(raw.name).suffix.lower()
    if b"%PDF-" in head:
        return _PDF
    if head.startswith(b"PK\x03\x04"):
        return _zipped(raw)
    if head.startswith(b"{\\rtf"):
        return _OFFICE[".rtf"]
    if _is_binary(raw.content):
        if suffix == ".pdf" or suffix in _OFFICE:
            raise SourceDamaged(f"{raw.name} is named {suffix} but is not one inside. Save it anew and try again.")
        raise SourceTypeUnknown(f"{raw.name} is of a kind that cannot be learned. Readable: {READABLE}.")
    if suffix == ".ipynb" and head.startswith(b"{"):
        return _OFFICE[suffix]
    if (
        re.match(rb"(?i)<(!doctype html|html|head|body)", head)
        or "html" in raw.media_type
        or suffix in (".html", ".htm")
    ):
        return _HTML
    return _TEXT


def _zipped(raw: Raw) -> str:
    try:
        names = zipfile.ZipFile(BytesIO(raw.content)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SourceDamaged(f"{raw.name} is damaged or incomplete. Save it anew and try again.") from error
    inside = {"word/": ".docx", "ppt/": ".pptx", "xl/": ".xlsx"}
    for folder, suffix in inside.items():
        if any(name.startswith(folder) for name in names):
            return _OFFICE[suffix]
    suffix = PurePosixPath(raw.name).suffix.lower()
    if "mimetype" in names and suffix in _OFFICE:
        return _OFFICE[suffix]
    raise SourceTypeUnknown(f"{raw.name} is an archive. Unpack it and learn the files in it. Readable: {READABLE}.")


def _is_binary(content: bytes) -> bool:
    sample = content[:65536]
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    strange = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in sample)
    return strange > len(sample) // 200


# --- inside the process ---------------------------------------------------------------------------


def read(raw: Raw) -> Document:
    """The document in these bytes, read here and now. Raises as `Extractor.extract` does."""
    readers: dict[str, Callable[[Raw], Document]] = {_PDF: _pdf, _HTML: _page, _TEXT: _text}
    found = kind(raw)
    document = readers[found](raw) if found in readers else _office(raw, found)
    size = sum(len(block.text) for block in document.blocks)
    if size > TEXT_LIMIT_CHARS:
        raise SourceTooLarge(f"{raw.name} holds {size:,} characters; {TEXT_LIMIT_CHARS:,} can be learned. Split it.")
    if not any(re.search(r"\w", block.text) for block in document.blocks):
        scan = " If it is a scan, run text recognition on it first." if found == _PDF else ""
        raise SourceEmpty(f"There is no text in {raw.name}.{scan}")
    return document


def _text(raw: Raw) -> Document:
    text = decode(raw.content)
    found = markdown.blocks(text)
    heading = next((block.text for block in found if block.kind == "heading"), "")
    return Document(title=heading or _name_title(raw.name), blocks=tuple(found))


def decode(content: bytes, claimed: str = "") -> str:
    """Text from bytes: by its mark, as UTF-8, as claimed, and at last as Western European, which always works."""
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    tries = [encoding for mark, encoding in marks if content.startswith(mark)] + ["utf-8", claimed or "utf-8", "cp1252"]
    for encoding in tries:
        try:
            return content.decode(encoding).replace("\x00", "")
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("latin-1").replace("\x00", "")


def _name_title(name: str) -> str:
    return PurePosixPath(name).name or name


def _page(raw: Raw) -> Document:
    try:
        import trafilatura
        from lxml.etree import LxmlError
    except ImportError as error:
        raise MissingExtra.named("knowledge", "Reading web pages") from error
    declared = re.search(r"charset=[\"']?([\w-]+)", raw.media_type + raw.content[:2048].decode("latin-1"))
    html = decode(raw.content, declared[1] if declared else "")
    try:
        text = trafilatura.extract(html, output_format="markdown", include_formatting=True, include_tables=True)
        about = trafilatura.extract_metadata(html)
    except (LxmlError, ValueError, AssertionError) as error:
        raise SourceDamaged(f"{raw.name} is not a page that can be read: {error}") from error
    title = (about.title if about else "") or _name_title(raw.name)
    found = markdown.blocks(text or "")
    if not found:
        return _office(raw, _HTML)
    return Document(title=title, blocks=tuple(found))


def _office(raw: Raw, media_type: str) -> Document:
    found = _kreuzberg(raw, media_type)
    parts = markdown.blocks(found.content)
    heading = next((block.text for block in parts if block.kind == "heading"), "")
    title = str((found.metadata or {}).get("title") or "") or heading or _name_title(raw.name)
    return Document(title=title, blocks=tuple(parts))


def _kreuzberg(raw: Raw, media_type: str) -> Any:  # a foreign object, taken apart at once
    try:
        import kreuzberg
    except ImportError as error:
        raise MissingExtra.named("knowledge", "Reading this kind of file") from error
    config = kreuzberg.ExtractionConfig(
        output_format="markdown",
        include_document_structure=True,
        pages=kreuzberg.PageConfig(extract_pages=True),
        use_cache=False,
    )
    try:
        return kreuzberg.extract_bytes_sync(raw.content, media_type, config=config)
    except (kreuzberg.KreuzbergError, ValueError, RuntimeError, OSError) as error:
        if any(word in str(error).lower() for word in _LOCK_WORDS):
            raise SourceLocked(
                f"{raw.name} is locked by a password. Save a copy without one and learn that."
            ) from error
        raise SourceDamaged(f"{raw.name} is damaged or incomplete. Save it anew and try again.") from error


def _pdf(raw: Raw) -> Document:
    found = _kreuzberg(raw, _PDF)
    pages = {page["page_number"]: page["content"] for page in found.pages or ()}
    repeated = repeated_lines(list(pages.values()))
    lines = {number: _PageLines(text, repeated) for number, text in pages.items()}
    nodes = (found.document or {}).get("nodes", ())
    blocks = list(_pdf_blocks(nodes, lines)) or [
        Block(kind="text", text=page.text, page=number) for number, page in lines.items() if page.text.strip()
    ]
    about = found.metadata or {}
    first = next((block.text for block in blocks if block.kind == "heading"), "")
    return Document(
        title=str(about.get("title") or "") or first or _name_title(raw.name), blocks=tuple(blocks), pages=len(pages)
    )


def repeated_lines(pages: Sequence[str]) -> frozenset[str]:
    """The heads and feet: lines at the edge of a page that stand, but for their numbers, on most pages."""
    counted: Counter[str] = Counter()
    for page in pages:
        lines = [line for line in page.splitlines() if line.strip()]
        counted.update({_masked(line) for line in (*lines[:3], *lines[-3:])})
    most = max(3, len(pages) // 2 + 1)
    return frozenset(line for line, times in counted.items() if times >= most)


def _masked(line: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"\s+", "", line))


_ALIKE = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\u00ad": None})
_PRIVATE = re.compile("[\ue000-\uf8ff\ufffe\uffff]")


class _PageLines:
    """A page as its lines stand, in which a block's text is looked up: the blocks themselves lose line breaks.

    Kreuzberg's blocks have the reading order and the headings right, but glue words over line ends
    ("MedicalInsurance"); the page's plain text has the lines right, but not the order.
    """

    def __init__(self, text: str, repeated: frozenset[str]) -> None:
        lines = (_PRIVATE.sub("", line).replace("\xa0", " ").rstrip() for line in text.splitlines())
        self.text = "\n".join(line for line in lines if _masked(line) not in repeated)
        self.width = max((len(line) for line in self.text.splitlines()), default=0)
        places = [index for index, character in enumerate(self.text) if not character.isspace()]
        self._places = places
        self._bare = "".join(self.text[index] for index in places).translate(_ALIKE)
        self._taken = 0

    def find(self, text: str) -> tuple[int, int] | None:
        """Where a block stands, as a range of `text`; blocks are asked for in reading order."""
        bare = re.sub(r"\s+", "", _PRIVATE.sub("", text)).translate(_ALIKE)
        if not bare:
            return None
        start, size = self._find(bare), len(bare)
        if start < 0 and len(bare) > 60:  # a letter or two are read differently: find both ends
            start, end = self._find(bare[:20]), self._find(bare[-20:])
            size = end + 20 - start
            if start < 0 or not 0.9 < size / len(bare) < 1.1:
                return None
        if start < 0:
            return None
        self._taken = start
        return self._places[start], self._places[start + size - 1] + 1

    def _find(self, bare: str) -> int:
        after = self._bare.find(bare, self._taken)
        return after if after >= 0 else self._bare.find(bare)

    def stands_alone(self, start: int, end: int) -> bool:
        before, after = self.text[:start], self.text[end:]
        return before.rpartition("\n")[2].strip() == "" and after.partition("\n")[0].strip() == ""

    def on_one_line(self, end: int, start: int) -> bool:
        return end <= start and "\n" not in self.text[end:start]

    def flowing(self, start: int, end: int) -> str:
        """The range with full lines joined again; a short line was ended on purpose."""
        lines = [line.strip() for line in self.text[start:end].splitlines() if line.strip()]
        return markdown.flowing(lines, self.width)


def _pdf_blocks(nodes: Sequence[dict[str, Any]], pages: dict[int, _PageLines]) -> Iterator[Block]:
    held: tuple[int, int, int] | None = None  # page, start, end: a block whose line may go on
    for node in nodes:
        content, number = node["content"], node.get("page")
        text = str(content.get("text") or "").strip()
        page = pages.get(number or 0)
        if content["node_type"] == "group" or not text or page is None:
            continue
        level = _heading_level(node, text)
        found = page.find(text)
        if found is None:
            if held:
                yield _ranged(pages, held)
                held = None
            yield Block(kind="heading" if level else "text", text=text, page=number, level=level)
            continue
        alone = level and page.stands_alone(*found)
        if (
            held
            and held[0] == number
            and held[2] <= found[0]
            and "\n" not in page.text[held[2] : found[0]]
            and not alone
        ):
            held = (held[0], held[1], found[1])
            continue
        if held:
            yield _ranged(pages, held)
            held = None
        if alone:
            yield Block(kind="heading", text=" ".join(page.text[slice(*found)].split()), page=number, level=level)
        else:
            held = (number or 0, *found)
    if held:
        yield _ranged(pages, held)


def _ranged(pages: dict[int, _PageLines], held: tuple[int, int, int]) -> Block:
    number, start, end = held
    page = pages[number]
    line = page.text.rfind("\n", 0, start) + 1  # what stands before it on its line belongs to it
    return Block(kind="text", text=page.flowing(line, end), page=number)


def _heading_level(node: dict[str, Any], text: str) -> int:
    content = node["content"]
    if content["node_type"] in ("heading", "title"):
        return int(content.get("level") or 1)
    bold = any(
        mark["kind"].get("annotation_type") == "bold" and mark["start"] == 0 and mark["end"] >= len(text)
        for mark in node.get("annotations", ())
    )
    return 2 if bold and len(text) <= 80 and not text.endswith((":", ".", ",", ";", "?", "!", "*")) else 0


def main() -> None:
    """Read one file from standard input and write what came of it to standard output, as JSON."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    head = json.loads(sys.stdin.buffer.readline())
    raw = Raw(content=sys.stdin.buffer.read(), **head)
    answer: dict[str, object]
    try:
        document = read(raw)
        answer = {
            "title": document.title[:200],
            "pages": document.pages,
            "blocks": [asdict(block) for block in document.blocks],
        }
    except (SourceError, MissingExtra) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"error": "SourceTooLarge", "message": f"{raw.name} needs too much memory to read. Split it."}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
