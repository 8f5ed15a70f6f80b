"""Reading files of every kind, well-formed and hostile, in processes of their own."""

import asyncio
import io
import sys
import zipfile

import pytest

from bot.errors import SourceDamaged, SourceEmpty, SourceError, SourceLocked, SourceTooLarge, SourceTypeUnknown
from knowledge.chunks import Document
from knowledge.extract import Extractor, Raw, decode, kind, read, repeated_lines
from tests.standins.documents import pdf
from tests.standins.library import MEDICARE

PAGE = """<!doctype html><html><head><title>Alpacas &amp; co</title></head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a> <a href="/about">About us</a></nav>
<main><article><h1>All about alpacas</h1>
<p>Alpacas are small camelids from the Andes, kept for their soft fleece, which needs no bleaching.</p>
<h2>Food</h2><p>They graze on grass and hay, and drink about five litres of water on a warm day.</p>
</article></main><footer>Copyright the alpaca society</footer></body></html>"""


def texts(document: Document) -> list[str]:
    return [block.text for block in document.blocks]


def docx(text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Override PartName="/word/document.xml" ContentType='
            '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            '<Relationship Id="r1" Target="word/document.xml" Type='
            '"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"/></Relationships>',
        )
        archive.writestr(
            "word/document.xml",
            '<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
            f"<w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>",
        )
    return out.getvalue()


async def test_a_pdf_has_pages() -> None:
    """Every block of a PDF knows its page."""
    document = await Extractor().extract(Raw(content=pdf("Hello alpaca", "Goodbye llama"), name="a.pdf"))

    assert [(block.page, block.text) for block in document.blocks] == [(1, "Hello alpaca"), (2, "Goodbye llama")]
    assert document.pages == 2


def test_a_page_keeps_its_article_and_headings() -> None:
    """Navigation and footer go; the headings stay headings."""
    document = read(Raw(content=PAGE.encode(), name="alpacas"))

    assert document.title == "All about alpacas"
    assert [block.text for block in document.blocks if block.kind == "heading"] == ["All about alpacas", "Food"]
    assert not any("Copyright" in text or "Shop" in text for text in texts(document))


def test_a_word_file_is_read() -> None:
    """The text of a .docx comes out, also when it is named otherwise."""
    assert texts(read(Raw(content=docx("Minutes of the alpaca club"), name="minutes.bin"))) == [
        "Minutes of the alpaca club"
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_recognised(encoding: str) -> None:
    """Text comes out right in the encodings that people's files have."""
    assert decode("Grüße, naïve café".encode(encoding)) == "Grüße, naïve café"


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (Raw(content=b"", name="a.txt"), SourceEmpty, "empty"),
        (Raw(content=pdf(""), name="scan.pdf"), SourceEmpty, "text recognition"),
        (Raw(content=pdf("secret", password="x"), name="a.pdf"), SourceLocked, "password"),
        (Raw(content=pdf("one " * 100)[:300], name="a.pdf"), SourceDamaged, "damaged"),
        (Raw(content=b"\x00\x01" * 500, name="a.pdf"), SourceDamaged, "not one inside"),
        (Raw(content=b"\x00\x01" * 500, name="a.dat"), SourceTypeUnknown, "Readable: text"),
        (Raw(content=b"PK\x03\x04 cut", name="a.docx"), SourceDamaged, "damaged"),
        (
            Raw(content=docx("x").replace(b"word/", b"none/"), name="a.zip"),
            SourceTypeUnknown,
            "archive",
        ),
        (Raw(content=b"<html><body><script>x()</script></body></html>", name="a.html"), SourceEmpty, "no text"),
    ],
)
async def test_bad_files_are_refused_in_one_line(raw: Raw, error: type[SourceError], says: str) -> None:
    """Each kind of bad file has its own error, whose text says what is wrong."""
    with pytest.raises(error, match=says) as raised:
        await Extractor().extract(raw)

    assert "\n" not in str(raised.value)
    assert raw.name in str(raised.value)


async def test_a_file_that_takes_too_long_is_given_up() -> None:
    """The time limit ends the process and says so."""
    with pytest.raises(SourceTooLarge, match="longer than"):
        await Extractor(time_limit_s=0.01).extract(Raw(content=b"text", name="slow.txt"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold to the limit of memory")
async def test_a_file_that_wants_too_much_memory_kills_only_its_reader() -> None:
    """Without memory the reader dies or gives up, and the next file is read as if nothing had been."""
    extractor = Extractor(memory_bytes=300 << 20)

    with pytest.raises((SourceDamaged, SourceTooLarge)):
        await extractor.extract(Raw(content=b"a b c\n" * 40_000_000, name="huge.txt"))

    assert texts(await extractor.extract(Raw(content=b"small", name="small.txt"))) == ["small"]


async def test_files_are_read_side_by_side_but_not_all_at_once() -> None:
    """Ten files at once end well, two at a time."""
    extractor = Extractor(at_once=2)
    raws = [Raw(content=f"file {number}".encode(), name=f"{number}.txt") for number in range(6)]

    found = await asyncio.gather(*map(extractor.extract, raws))

    assert [texts(document) for document in found] == [[f"file {number}"] for number in range(6)]


def test_what_bytes_are_counts_more_than_their_name() -> None:
    """A page named .txt is a page, a PDF without a name is a PDF."""
    assert kind(Raw(content=PAGE.encode(), name="a.txt")) == "text/html"
    assert kind(Raw(content=pdf("x"), name="download")) == "application/pdf"
    assert kind(Raw(content=b"plain", name="a.md")) == "text/plain"


def test_heads_and_feet_are_lines_that_repeat_but_for_their_numbers() -> None:
    """What stands at the edge of most pages is no text of any of them."""
    pages = [f"11/23/23, 6:22 PM Programs\nhttps://example.org {n}/4\n{word}" for n, word in enumerate("abcd")]

    assert len(repeated_lines(pages)) == 2
    assert repeated_lines(pages[:2]) == frozenset()


@pytest.mark.skipif(not MEDICARE.exists(), reason="the Medicare leaflet is not here")
async def test_a_printed_web_page_reads_like_the_page() -> None:
    """Words are not glued over line ends, heads and feet are gone, and the programs are headings."""
    document = await Extractor().extract(Raw(content=MEDICARE.read_bytes(), name=MEDICARE.name))
    everything = "\n".join(texts(document))
    headings = [block.text for block in document.blocks if block.kind == "heading"]

    assert document.pages == 6
    assert "Part B (Medical Insurance) premiums" in everything
    assert "6:22 PM" not in everything
    assert "Individual $4,945 $4,000\nMarried couple $6,659 $6,000" in everything
    for name in ("(QMB) Program", "(SLMB) Program", "(QI) Program", "(QDWI) Program"):
        assert any(heading.endswith(name) for heading in headings)
