"""Server-sent events as OpenAI's API streams them, read from bytes.

Each event is one line `data: JSON`; `data: [DONE]` says that the answer is whole.
"""

from collections.abc import Iterable, Iterator
from typing import Final

DONE: Final = b"[DONE]"


class EventReader:
    """Cuts a stream into events, however the network cut it into chunks."""

    def __init__(self) -> None:
        self.done = False
        """Whether the stream said that it is whole."""
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of every event that these bytes complete; nothing after `[DONE]`."""
        # Bytes, and not text: the network may cut within a character.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            data = _data(line)
            if data == DONE:
                self.done = True
            elif data is not None and not self.done:
                events.append(data)
        return events

    def end(self) -> list[bytes]:
        """Return what a stream ended with where its last line has no line break."""
        return self.feed(b"\n")


def read_events(chunks: Iterable[bytes], reader: EventReader) -> Iterator[bytes]:
    """Yield the data of every event up to `[DONE]`, or up to the end of a stream that is cut:
    `reader.done` tells which it was.
    """
    for chunk in chunks:
        yield from reader.feed(chunk)
        if reader.done:
            return
    yield from reader.end()


def _data(line: bytes) -> bytes | None:
    """Return an event's data; None of a line that brings none (comments, names, empty lines)."""
    field, _, value = line.partition(b":")
    if field == b"data":
        # The space after the colon and a carriage return belong to the protocol.
        return value.strip()
    # Releases of llama-server put a failure into a field of its own, without the outer object.
    if field == b"error":
        return b'{"error": ' + value.strip() + b"}"
    return None
