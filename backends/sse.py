"""Server-sent events, without any input or output.

Written for what model servers send: `data:` with and without a space, comments as keep-alive, LF or CRLF, events cut
anywhere into chunks. Lines end at LF bytes only: U+2028 and U+0085 stand unescaped inside JSON strings.
"""


class EventReader:
    """Turns chunks of bytes into the data of whole events, in order, however the bytes are cut."""

    __slots__ = ("_data", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes; the lines of one event are joined by LF."""
        fresh = not self._tail and not self._data
        if fresh and chunk[:6] == b"data: " and chunk[-3:] == b"}\n\n" and chunk.find(b"\n") == len(chunk) - 2:
            return [chunk[6:-2]]  # one whole event of JSON: how nearly every token arrives
        return self._feed_lines(chunk)

    def close(self) -> list[bytes]:
        """What is left at the end of the stream: servers may end without the last blank line."""
        return self._feed_lines(b"\n\n")

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        events = []
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events
