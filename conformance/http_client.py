"""Requests as a client of OpenAI's API makes them; everything that comes back is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import httpx

from weighbridge.conformance.base import CheckFailed, Session
from weighbridge.conformance.reference import Question
from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import quoted
from weighbridge.serving.event_stream import EventReader

CHAT: Final = "/v1/chat/completions"
PLAIN: Final = "/v1/completions"


@dataclass
class HttpReply:
    """One answer, whole or as it was streamed."""

    pieces: list[str] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    done: bool = False
    """Whether the stream said that it was whole."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def path_of(question: Question) -> str:
    """Return the route that takes a question."""
    return CHAT if question.chat else PLAIN


def ask(session: Session, question: Question, **options: Any) -> HttpReply:
    """Return the whole answer to a question, greedy unless `options` say otherwise.

    Raises:
        CheckFailed: The answer has not the form of OpenAI's API.
        Unavailable: There is no answer.
    """
    status, body = send(
        session, path_of(question), question.body(model=model_of(session), **options)
    )
    if status != httpx.codes.OK:
        raise CheckFailed(f"HTTP {status}: {str(body)[:200]}")
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"] if question.chat else choice["text"]
        return HttpReply([text or ""], choice["finish_reason"], body["usage"], done=True)
    except (KeyError, IndexError, TypeError) as exc:
        raise CheckFailed(f"the reply has not the form of OpenAI's API: {str(body)[:200]}") from exc


def stream(session: Session, question: Question, **options: Any) -> HttpReply:
    """Return the answer to a question, streamed to its end."""
    reply = HttpReply()
    with streaming(session, question, **options) as events:
        for event in events:
            _add(reply, event, chat=question.chat)
        reply.done = True
    return reply


@contextmanager
def streaming(
    session: Session, question: Question, **options: Any
) -> Iterator[Iterator[dict[str, Any]]]:
    """Give the events of a streamed answer; leaving the block hangs up.

    Raises:
        CheckFailed: It is no stream of OpenAI's API, or ends before it says so.
        Unavailable: There is no answer, or it breaks off.
    """
    # OpenAI's API counts the tokens of a stream only for those who ask.
    options = {"stream": True, "stream_options": {"include_usage": True}, **options}
    body, url = question.body(model=model_of(session), **options), session.url + path_of(question)
    try:
        with _http().stream("POST", url, json=body, timeout=session.timeout) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise CheckFailed(f"HTTP {response.status_code}: {response.text[:200]}")
            yield _events(response)
    except httpx.HTTPError as exc:
        raise Unavailable(f"asking {url}", str(exc) or type(exc).__name__) from exc


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    # Without `reader.end()`: strict clients ignore a last line without a line break.
    reader = EventReader()
    for chunk in response.iter_bytes():
        yield from map(_event, reader.feed(chunk))
        if reader.done:
            return
    raise CheckFailed("the stream ended without `data: [DONE]`")


def _event(data: bytes) -> dict[str, Any]:
    try:
        # Decoded strictly: bytes that do not make a whole character must show.
        event: dict[str, Any] = json.loads(data.decode())
    except ValueError as exc:
        beginning = quoted(data[:80].decode(errors="replace"))
        raise CheckFailed(f"an event of the stream is not JSON in UTF-8: {beginning}") from exc
    if "error" in event:
        raise CheckFailed(f"the stream broke off: {event['error']}")
    return event


def _add(reply: HttpReply, event: Mapping[str, Any], *, chat: bool) -> None:
    # `usage` is null in every event but the last, and that one has no choices.
    reply.usage = event.get("usage") or reply.usage
    for choice in event.get("choices", []):
        # A chat begins with an event that names the role and has no content.
        piece = (choice.get("delta") or {}).get("content") if chat else choice.get("text")
        if piece:
            reply.pieces.append(piece)
        reply.finish = choice.get("finish_reason") or reply.finish


def send(session: Session, path: str, body: Mapping[str, Any] | bytes) -> tuple[int, Any]:
    """Return status and content of the answer to a POST, parsed where it is JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = session.url + path
    try:
        headers = {"Content-Type": "application/json"}
        response = _http().post(url, content=content, headers=headers, timeout=session.timeout)
    except httpx.HTTPError as exc:
        raise Unavailable(f"asking {url}", str(exc) or type(exc).__name__) from exc
    try:
        return response.status_code, response.json()
    except ValueError:
        return response.status_code, response.text


def fetch(session: Session, path: str) -> str:
    """Return the text of a page. Raises CheckFailed where it is not there."""
    try:
        response = _http().get(session.url + path, timeout=session.timeout)
    except httpx.HTTPError as exc:
        raise Unavailable(f"asking {session.url}{path}", str(exc) or type(exc).__name__) from exc
    if response.status_code != httpx.codes.OK:
        raise CheckFailed(f"{path} answers HTTP {response.status_code}")
    return response.text


def model_of(session: Session) -> str:
    """Return the name of the served model, which some servers insist on."""
    listed = json.loads(fetch(session, "/v1/models"))
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as exc:
        raise CheckFailed("/v1/models names no model") from exc


@cache
def _http() -> httpx.Client:
    """Return a client that opens a connection per request: hanging up then closes it."""
    return httpx.Client(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0), trust_env=False
    )
