"""Answers in OpenAI's form: whole, or as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from weighbridge.serving.shim.detokenizer import Delta
from weighbridge.serving.shim.protocol import Generator, Token
from weighbridge.serving.shim.requests import CompletionRequest


@dataclass
class CompletionResponse:
    """One answer as it grows."""

    request: CompletionRequest
    generator: Generator
    model: str
    id: str
    created: int
    text: str = ""
    finish: str | None = None
    tokens: list[Token] = field(default_factory=list)

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)

    def add(self, delta: Delta) -> None:
        """Add a delta to the whole answer."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.finish = delta.finish

    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        content = (
            {"message": {"role": "assistant", "content": self.text}}
            if self.request.chat
            else {"text": self.text}
        )
        choice = {
            "index": 0,
            **content,
            "logprobs": self._logprobs(self.tokens),
            "finish_reason": self.finish,
        }
        return {**self._head(), "choices": [choice], "usage": self._usage()}

    def opening(self) -> Iterator[bytes]:
        """Yield what comes before any text."""
        # A chat's first event names who speaks, before any text; a plain completion's does not.
        if self.request.chat:
            yield self._event(self._choice({"role": "assistant", "content": ""}, None))

    def events(self, delta: Delta) -> Iterator[bytes]:
        """Yield what a delta adds to the stream; after the last one also how many tokens the answer
        took, if that was asked.
        """
        self.add(delta)
        if delta.text or (self.request.sampling.logprobs is not None and delta.tokens):
            logprobs = self._logprobs(delta.tokens)
            yield self._event(self._choice({"content": delta.text}, logprobs))
        if delta.finish:
            yield self._event(self._choice({}, None, delta.finish))
            # As OpenAI does: in an event of its own, which has no choice.
            if self.request.usage:
                yield _event({**self._head(chunk=True), "choices": [], "usage": self._usage()})

    def _choice(
        self, delta: dict[str, str], logprobs: Any, finish: str | None = None
    ) -> dict[str, Any]:
        content = {"delta": delta} if self.request.chat else {"text": delta.get("content", "")}
        return {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, choice: dict[str, Any]) -> bytes:
        # As OpenAI does: null in every event but the one that tells.
        usage = {"usage": None} if self.request.usage else {}
        return _event({**self._head(chunk=True), "choices": [choice], **usage})

    def _head(self, *, chunk: bool = False) -> dict[str, Any]:
        chat = "chat.completion.chunk" if chunk else "chat.completion"
        kind = chat if self.request.chat else "text_completion"
        prefix = "chatcmpl" if self.request.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _usage(self) -> dict[str, int]:
        prompt, completion = len(self.request.prompt), self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.request.sampling.logprobs is None:
            return None
        if self.request.chat:
            return {
                "content": [self._entry(token.id, token.logprob, token.top) for token in tokens]
            }
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._text(other): value for other, value in token.top} for token in tokens
            ],
        }

    def _entry(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]] = ()
    ) -> dict[str, Any]:
        text = self._text(token)
        entry = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        return {**entry, "top_logprobs": [self._entry(other, value) for other, value in top]}

    def _text(self, token: int) -> str:
        return self.generator.detokenize([token])


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
