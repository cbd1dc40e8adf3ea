"""Streamed answers as the load generator sees them: when each delta came, and whether the answer
was whole.

The generator shares the processor with the engine it measures, so it searches an event's bytes
instead of parsing its JSON.
"""

import itertools
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
PROMPT_TOKENS: Final = re.compile(rb'"prompt_tokens":\s*(\d+)')
CACHED_TOKENS: Final = re.compile(rb'"cached_tokens":\s*(\d+)')
ERROR: Final = b'{"error"'


@dataclass(slots=True)
class StreamedAnswer:
    """What was seen of one request."""

    started: float
    """When it was to be sent: latencies count from here."""
    sent: float = 0.0
    """When it was; the difference is the generator's own lag."""
    ended: float = 0.0
    """0 while it is under way."""
    arrivals: list[float] = field(default_factory=list)
    """The moments at which something of the answer came."""
    pieces: list[int] = field(default_factory=list)
    """How many deltas came at each of them."""
    tokens: int = 0
    """As the server counts them; where it doesn't, the deltas."""
    counted: bool = False
    """Whether the server did."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Those of the prompt that the server had in its prefix cache; None where it tells none."""
    finished: bool = False
    """Whether a reason for the answer's end came."""
    error: str | None = None
    _reader: EventReader = field(default_factory=EventReader)

    @property
    def whole(self) -> bool:
        """Whether it was answered to its end."""
        return self.ended > 0 and self.error is None

    @property
    def tpot(self) -> float | None:
        """Return the time per output token after the first, as MLPerf Inference defines TPOT:
        (last - first) / (tokens - 1).

        None of an answer of one token, or one that came in one piece: it shows no pace.
        """
        if self.tokens < 2 or len(self.arrivals) < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)

    def see(self, chunk: bytes) -> None:
        """Note what the bytes that just came say."""
        self._note(self._reader.feed(chunk))

    def close(self, problem: str | None) -> None:
        """Note that the connection is over; `problem` says what broke, if anything did."""
        self._note(self._reader.end())
        self.ended = time.perf_counter()
        self.tokens = self.tokens or sum(self.pieces)
        self.error = self.error or problem
        if not self.error and not (self.finished and self._reader.done):
            self.error = "the stream ended before the answer did"

    def silence(self, now: float) -> float:
        """Return for how long nothing of it has come, while it is under way."""
        return now - (self.arrivals[-1] if self.arrivals else self.started)

    def longest_silence(self) -> float:
        """Return the longest time between the request, its pieces, and its end."""
        moments = [self.started, *self.arrivals, self.ended]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def _note(self, events: Iterable[bytes]) -> None:
        deltas = 0
        for event in events:
            deltas += len(DELTA.findall(event))
            if not self.finished and FINISHED.search(event):
                self.finished = True
            if b'"usage"' in event:
                self._count(event)
            if not self.error and event.startswith(ERROR):
                self.error = event.decode(errors="replace")[:200]
        # Of several deltas at once nobody saw when each was made: they are one piece.
        if deltas:
            self.arrivals.append(time.perf_counter())
            self.pieces.append(deltas)

    def _count(self, event: bytes) -> None:
        if usage := COMPLETION_TOKENS.search(event):
            self.tokens, self.counted = int(usage[1]), True
        if prompt := PROMPT_TOKENS.search(event):
            self.prompt_tokens = int(prompt[1])
        if cached := CACHED_TOKENS.search(event):
            self.cached_tokens = int(cached[1])
