"""Small documents made by hand, well-formed and broken."""

import hashlib

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def pdf(*pages: str, password: str = "") -> bytes:
    """A PDF with one line of text on each page, locked by a password when one is given."""
    identity = hashlib.md5(b"chinwag").digest()
    key, lock = _keys(password, identity) if password else (b"", b"")
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    raw = [text.encode("latin-1") for text in objects]
    for text in pages:
        number = len(raw) + 1
        raw.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode("latin-1")
        if key:
            salted = hashlib.md5(key + (number + 1).to_bytes(3, "little") + b"\0\0").digest()[:10]
            stream = _rc4(salted, stream)
        raw.append(b"<< /Length %d >>\nstream\n" % len(stream) + stream + b"\nendstream")
    trailer = f"/Root 1 0 R /ID [<{identity.hex()}><{identity.hex()}>]"
    if lock:
        raw.append(lock)
        trailer += f" /Encrypt {len(raw)} 0 R"
    return _assembled(raw, trailer)


def _assembled(objects: list[bytes], trailer: str) -> bytes:
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + f"trailer\n<< /Size {len(objects) + 1} {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode())


def _keys(password: str, identity: bytes) -> tuple[bytes, bytes]:
    """The file's key and its lock, by revision 2 of the standard handler: 40-bit RC4."""
    padded = (password.encode() + _PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    allowed = (-44).to_bytes(4, "little", signed=True)
    key = hashlib.md5(padded + owner + allowed + identity).digest()[:5]
    user = _rc4(key, _PADDING)
    lock = f"<< /Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P -44 >>"
    return key, lock.encode()


def _rc4(key: bytes, data: bytes) -> bytes:
    box, j, out = list(range(256)), 0, bytearray()
    for i in range(256):
        j = (j + box[i] + key[i % len(key)]) % 256
        box[i], box[j] = box[j], box[i]
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + box[i]) % 256
        box[i], box[j] = box[j], box[i]
        out.append(byte ^ box[(box[i] + box[j]) % 256])
    return bytes(out)
