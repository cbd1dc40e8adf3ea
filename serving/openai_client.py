"""A small client of OpenAI's HTTP API, for readiness, quality, probes and `weighbridge ask`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.serving.event_stream import EventReader, read_events

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPConnection
    from urllib.parse import SplitResult

    import httpx

OK: Final = 200
BASE_SUFFIX: Final = "-base"
"""After a model's name, that of the base which an adapter of the model's name stands on."""
SERVER_ERROR: Final = 500

_HEADERS: Final = {"Accept": "*/*", "User-Agent": "weighbridge"}
"""Some guards of public endpoints refuse a client without."""

Prompt = str | Sequence[Mapping[str, str]]
"""Plain text, or the messages of a chat."""
Payload = Mapping[str, Any]
"""Body of one request: with `messages` for the chat, with `prompt` for plain text."""


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class RequestRefused(Unavailable):
    """The server answered, with an error of its own."""

    def __init__(self, url: str, status: int, message: str) -> None:
        super().__init__(f"asking {url}", f"HTTP {status}: {message}")
        self.status = status


class Client:
    """Asks one server. Safe for several threads."""

    def __init__(
        self,
        url: str,
        timeout: float = 120.0,
        headers: Mapping[str, str] | None = None,
        certificate: Path | None = None,
    ) -> None:
        """Keep what every request needs; nothing is asked yet.

        Args:
            url: the server's base without `/v1`.
            timeout: seconds that an answer may take.
            headers: go with every request.
            certificate: PEM file with the one certificate that the server may show, whatever its
                name; None: any that this machine's authorities vouch for.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.headers = dict(headers or {})
        self.certificate = certificate

    @cached_property
    def model(self) -> str:
        """The name of what is served, which some servers insist on."""
        return next(iter(self.models()), "model")

    def models(self) -> list[str]:
        """Return the names the server goes by; an adapter that stands for the model comes before
        its base.
        """
        served = self._ask("GET", "/v1/models", None)["data"]
        served.sort(key=lambda model: model.get("parent") != f"{model['id']}{BASE_SUFFIX}")
        return [str(model["id"]) for model in served]

    def ask(self, prompt: Prompt, **options: Any) -> Answer:
        """Return one answer, greedy unless `options` (of OpenAI's API) say otherwise.

        Raises:
            RequestRefused: the server said no.
            Unavailable: it is not there, broke off, or sent something else than an answer.
        """
        path, body = request(prompt, model=self.model, **options)
        response = self._ask("POST", path, body)
        try:
            choice, usage = response["choices"][0], response.get("usage") or {}
            text = choice["text"] if isinstance(prompt, str) else choice["message"]["content"]
            return Answer(
                text or "",
                choice["finish_reason"] or "",
                int(usage.get("prompt_tokens", 0)),
                int(usage.get("completion_tokens", 0)),
            )
        except (KeyError, IndexError, TypeError) as exc:
            raise Unavailable(
                f"asking {self.url}{path}", f"there is no answer in its reply: {response}"
            ) from exc

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield the answer, delta by delta as it comes.

        Raises:
            Unavailable: as for `ask`, and when the stream ends before the answer does.
        """
        path, body = request(prompt, model=self.model, stream=True, **options)
        for event in self._events(f"{self.url}{path}", body):
            if "error" in event:
                raise Unavailable(f"asking {self.url}{path}", f"it broke off: {event['error']}")
            for choice in event.get("choices", []):
                text = (
                    choice.get("text")
                    if isinstance(prompt, str)
                    else choice["delta"].get("content")
                )
                if text:
                    yield text

    def _ask(self, method: str, path: str, body: Payload | None) -> Any:
        return _ask(method, f"{self.url}{path}", body, self.timeout, self.headers, self.certificate)

    def _events(self, url: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        import httpx

        try:
            with _http(self.certificate).stream(
                "POST", url, json=body, timeout=self.timeout, headers=self.headers
            ) as response:
                if response.status_code != OK:
                    raise RequestRefused(url, response.status_code, _error_message(response.read()))
                reader = EventReader()
                yield from map(json.loads, read_events(response.iter_bytes(), reader))
                if reader.done:
                    return
        except httpx.HTTPError as exc:
            raise Unavailable(f"asking {url}", _reason(exc)) from exc
        except ValueError as exc:
            raise Unavailable(f"asking {url}", f"its stream is not JSON: {exc}") from exc
        raise Unavailable(f"asking {url}", "the stream ended before the answer did")


def request(prompt: Prompt, **options: Any) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request for a chat or for plain text."""
    body = {"model": "model", "temperature": 0, **options}
    if isinstance(prompt, str):
        return "/v1/completions", {**body, "prompt": prompt}
    return "/v1/chat/completions", {**body, "messages": [dict(message) for message in prompt]}


def is_ready(url: str, timeout: float = 60.0, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a real token comes back, from the chat or, where the model has no chat, as plain
    text.
    """
    client = Client(url, timeout, headers)
    for prompt in ([{"role": "user", "content": "Hi"}], "Hi"):
        try:
            answer = client.ask(prompt, max_tokens=1)
            # Some tokens have no text, and some servers count no tokens.
            return answer.completion_tokens > 0 or bool(answer.text)
        except RequestRefused as exc:
            # A 4xx is about the chat, and plain text is still worth a try; a 5xx is about the
            # server.
            if exc.status >= SERVER_ERROR:
                return False
        except Unavailable:
            return False
    return False


def get(url: str, timeout: float = 120.0, headers: Mapping[str, str] | None = None) -> Any:
    """Return JSON from a server. Raises as `post`."""
    return _ask("GET", url, None, timeout, headers)


def post(
    url: str,
    body: Mapping[str, Any],
    timeout: float = 120.0,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Return the JSON that a server answers to JSON.

    Raises:
        RequestRefused: the server said no.
        Unavailable: it is not there, broke off, or did not answer in JSON.
    """
    return _ask("POST", url, body, timeout, headers)


def _ask(
    method: str,
    url: str,
    body: Mapping[str, Any] | None,
    timeout: float,
    headers: Mapping[str, str] | None,
    certificate: Path | None = None,
) -> Any:
    """Ask by the standard library, which takes a third of httpx's CPU time: thousands of short
    questions are asked in a row, such as for the tokens of every row.
    """
    from http.client import HTTPException
    from urllib.parse import urlsplit

    address, content, sent = urlsplit(url), None, {**_HEADERS, **(headers or {})}
    if body is not None:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        sent["Content-Type"] = "application/json"
    path = address._replace(scheme="", netloc="").geturl() or "/"
    try:
        with contextlib.closing(_connection(address, timeout, certificate)) as connection:
            connection.request(method, path, content, sent)
            response = connection.getresponse()
            status, reply = response.status, response.read()
    except (OSError, HTTPException) as exc:
        raise Unavailable(f"asking {url}", _reason(exc)) from exc
    if status != OK:
        raise RequestRefused(url, status, _error_message(reply))
    try:
        return json.loads(reply)
    except ValueError as exc:
        raise Unavailable(f"asking {url}", f"its reply is not JSON: {exc}") from exc


def _connection(address: SplitResult, timeout: float, certificate: Path | None) -> HTTPConnection:
    """Return a connection for one request, not yet opened."""
    from http.client import HTTPConnection, HTTPSConnection

    host, port = address.hostname or "", address.port
    if address.scheme == "https" and host:
        return HTTPSConnection(host, port, timeout=timeout, context=_trust(certificate))
    if address.scheme == "http" and host:
        return HTTPConnection(host, port, timeout=timeout)
    doing = f"asking {address.geturl()}"
    raise Unavailable(doing, "it is no address", "begin it with http:// or https://")


@cache
def _http(certificate: Path | None = None) -> httpx.Client:
    """Return a client that makes one connection per request: servers that promise to keep one open
    and close it break pooled ones.
    """
    import httpx  # recipes import engines, and engines this module

    # trust_env: no proxy of the user's may stand between us and an engine.
    return httpx.Client(
        limits=httpx.Limits(max_keepalive_connections=0),
        trust_env=False,
        verify=_trust(certificate),
    )


@cache
def _trust(certificate: Path | None) -> ssl.SSLContext:
    """Return whom HTTPS believes: this one certificate, or those that httpx believes."""
    import httpx

    return _trusting(certificate) if certificate else httpx.create_ssl_context(trust_env=False)


def _trusting(certificate: Path) -> ssl.SSLContext:
    """Return a context that takes this one certificate, for whatever name it was made."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Else one that an authority has signed would need that authority's certificate as well.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
    except OSError as exc:
        raise Unavailable("asking the address", f"{certificate}: {exc.strerror or exc}") from exc
    return context


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _error_message(reply: bytes) -> str:
    """Return what the server says is wrong, in whichever of the usual forms."""
    try:
        body = json.loads(reply)
        error = body.get("error", body) if isinstance(body, dict) else body
        return str(error.get("message", error) if isinstance(error, dict) else error)[:400]
    except ValueError:
        return one_line(reply.decode(errors="replace"), 400)
