"""A model for the shim that needs none: its tokens are bytes, and it says what it is told to."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from weighbridge.serving.shim.protocol import Sampling, Token, TokenStream

END = 256


class Bytes:
    """Answers `answer`, or the prompt itself; a byte is a token, so most characters are split over
    several.
    """

    def __init__(
        self, answer: str = "", *, context: int = 200, slots: int = 2, delay: float = 0.0
    ) -> None:
        self.answer = answer
        self.context = context
        self.slots = slots
        self.delay = delay
        self.ends = frozenset({END})
        self.fail_at = -1
        self.at_once = 0
        self.most_at_once = 0
        self.begun = 0
        self.said = 0
        self._lock = threading.Lock()

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token != END).decode(errors="replace")

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        if messages[0]["role"] not in ("system", "user"):
            raise ValueError("a chat begins with the user")
        return list("\n".join(message["content"] for message in messages).encode())

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        with self._lock:
            self.begun += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            said = [*(self.answer.encode() or prompt), END][: sampling.max_tokens]
            for place, byte in enumerate(said):
                if place == self.fail_at:
                    raise RuntimeError("the model broke")
                time.sleep(self.delay)
                self.said += 1
                yield Token(byte, None if sampling.logprobs is None else -0.5, ((byte, -0.5),))
        finally:
            with self._lock:
                self.at_once -= 1

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        return [-float(token) for token in completion]
