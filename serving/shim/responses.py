"""Replies in OpenAI's form: whole, or as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from weighbridge.serving.shim.detokenizer import Piece
from weighbridge.serving.shim.protocol import Generator, Token
from weighbridge.serving.shim.requests import CompletionRequest


@dataclass
class CompletionReply:
    """One answer as it grows."""

    order: CompletionRequest
    generator: Generator
    model: str
    id: str
    created: int
    text: str = ""
    finish: str = ""
    tokens: list[Token] = field(default_factory=list)

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish = piece.finish

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        said = (
            {"message": {"role": "assistant", "content": self.text}}
            if self.order.chat
            else {"text": self.text}
        )
        choice = {
            "index": 0,
            **said,
            "logprobs": self._logprobs(self.tokens),
            "finish_reason": self.finish,
        }
        return {**self._head(""), "choices": [choice], "usage": self._usage()}

    def opening(self) -> Iterator[bytes]:
        """What comes before any text."""
        if self.order.chat:
            yield self._event(self._choice({"role": "assistant", "content": ""}, None, ""))

    def events(self, piece: Piece) -> Iterator[bytes]:
        """What a piece adds to the stream; after the last one also how many tokens it took, if
        asked.
        """
        self.add(piece)
        if piece.text or (self.order.sampling.logprobs is not None and piece.tokens):
            yield self._event(
                self._choice({"content": piece.text}, self._logprobs(piece.tokens), "")
            )
        if piece.finish:
            yield self._event(self._choice({}, None, piece.finish))
            if self.order.usage:
                yield _event({**self._head(".chunk"), "choices": [], "usage": self._usage()})

    def _choice(self, delta: dict[str, str], logprobs: Any, finish: str) -> dict[str, Any]:
        said = {"delta": delta} if self.order.chat else {"text": delta.get("content", "")}
        return {"index": 0, **said, "logprobs": logprobs, "finish_reason": finish or None}

    def _event(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self.order.usage else {}
        return _event({**self._head(".chunk"), "choices": [choice], **usage})

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.order.chat else "text_completion"
        prefix = "chatcmpl" if self.order.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _usage(self) -> dict[str, int]:
        prompt, completion = len(self.order.prompt), self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.order.sampling.logprobs is None:
            return None
        if self.order.chat:
            return {
                "content": [self._entry(token.id, token.logprob, token.top) for token in tokens]
            }
        return {
            "tokens": [self._word(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._word(other): value for other, value in token.top} for token in tokens
            ],
        }

    def _entry(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]] = ()
    ) -> dict[str, Any]:
        word = self._word(token)
        entry = {"token": word, "logprob": logprob, "bytes": list(word.encode())}
        return {**entry, "top_logprobs": [self._entry(other, value) for other, value in top]}

    def _word(self, token: int) -> str:
        return self.generator.detokenize([token])


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
