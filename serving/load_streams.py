"""Streamed answers as the load generator sees them: when each delta came, and whether the answer
was whole.

The generator shares the processor with the engine it measures, so it searches an event's bytes
instead of parsing its JSON.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from weighbridge.serving.event_stream import EventReader

# Not an empty text: the event that opens a chat brings one, before any token is made.
DELTA: Final = re.compile(rb'"(?:content|text|reasoning_content)":\s*"(?!")')
# With a quote: until the last delta its value is null.
FINISHED: Final = re.compile(rb'"finish_reason":\s*"')
COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens":\s*(\d+)')
ERROR: Final = b'{"error"'


@dataclass(slots=True)
class StreamedAnswer:
    """What was seen of one request."""

    started: float
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When each delta of the answer came; of several at once, spread over the time since the one
    before.
    """
    tokens: int = 0
    """As the server counts them; where it doesn't, the deltas."""
    finished: bool = False
    """Whether a reason for the answer's end came."""
    error: str | None = None
    _reader: EventReader = field(default_factory=EventReader)

    def see(self, chunk: bytes) -> None:
        """Note what the bytes that just came say."""
        self._note(self._reader.feed(chunk))

    def close(self, problem: str | None) -> None:
        """Note that the connection is over; `problem` says what broke, if anything did."""
        self._note(self._reader.end())
        self.ended = time.perf_counter()
        self.tokens = self.tokens or len(self.arrivals)
        self.error = self.error or problem
        if not self.error and not (self.finished and self._reader.done):
            self.error = "the stream ended before the answer did"

    def _note(self, events: Iterable[bytes]) -> None:
        deltas = 0
        for event in events:
            deltas += len(DELTA.findall(event))
            if not self.finished and FINISHED.search(event):
                self.finished = True
            if b'"usage"' in event and (usage := COMPLETION_TOKENS.search(event)):
                self.tokens = int(usage[1])
            if not self.error and event.startswith(ERROR):
                self.error = event.decode(errors="replace")[:200]
        self._arrive(deltas, time.perf_counter())

    def _arrive(self, count: int, now: float) -> None:
        if count == 1:
            self.arrivals.append(now)
        elif count:
            before = self.arrivals[-1] if self.arrivals else now
            self.arrivals += [before + (now - before) * nth / count for nth in range(1, count + 1)]
