"""A small real server of OpenAI's API, with faults on request. Standard library only: it runs in
any environment.

Usage: python -I tests/stand_ins/openai.py --port 8000 [--answers FILE] [faults]
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "stand-in"
FAULTS: dict[str, type] = {
    "first_delay": float,
    "token_delay": float,
    "slower": float,
    "error_every": int,
    "error_share": float,
    "die_after": int,
    "die_seconds": float,
    "leak": int,
    "context": int,
    "truncate_every": int,
    "unfinished_every": int,
}
"""Fields of `Behaviour` that are options of the command line, too."""
SWITCHES = ("garbage", "never_ready", "drains", "no_counts")
FLAWS = {
    "wrong_usage": "counts a token too many of every prompt",
    "silent_usage": "says nothing of tokens at the end of a stream",
    "no_stop": "knows no stop sequences",
    "stop_included": "leaves the stop sequence in the answer",
    "no_max_tokens": "answers as long as it likes",
    "no_seed": "draws anew whatever the seed",
    "no_sampling": "gives the likeliest answer at every temperature",
    "no_system": "hears only what was said last",
    "torn": "sends halves of characters",
    "one_piece": "streams everything at once",
    "dies_of_nonsense": "ends at a body that is not JSON",
    "blames_itself": "answers nonsense with 500",
    "any_length": "takes prompts of any length",
    "no_metrics": "has no metrics",
    "deaf": "goes on answering when nobody listens",
    "starts_anyhow": "starts without what it should serve",
    "ignores_sigterm": "does not end on SIGTERM",
    "leaves_child": "starts a process that outlives it",
}
"""What breaks one promise each; any number may be given."""


@dataclass
class Behaviour:
    """How the server answers. `every=3` of a fault means requests 3, 6, 9 …; 0 means never."""

    answers: dict[str, str] = field(default_factory=dict)
    """By prompt; whatever is not in it gets `default`."""
    default: str = "one two three four"
    first_delay: float = 0.0
    token_delay: float = 0.0
    error_every: int = 0
    truncate_every: int = 0
    """The connection is closed in the middle of the stream."""
    unfinished_every: int = 0
    """The stream ends properly, but without a reason and without `[DONE]`."""
    break_every: int = 0
    """An error is told within the stream."""
    hang_every: int = 0
    """Nothing comes, for as long as the server runs."""
    stall_every: int = 0
    """Nothing more comes after the first half of the answer, for as long as the server runs."""
    cached: int | None = None
    """Tokens of every prompt that it says it had in its prefix cache."""
    per_piece: int = 1
    """Tokens in one piece of a stream."""
    die_after: int = 0
    """The process ends at this request."""
    die_seconds: float = 0.0
    """The process ends so long after the first request, whatever is under way."""
    error_share: float = 0.0
    """Part of the requests, drawn at random, that get an error."""
    garbage: bool = False
    """Answers are words that nobody asked for, others for every prompt."""
    slower: float = 1.0
    """Factor of both delays."""
    leak: int = 0
    """MiB of memory that every request takes for good."""
    never_ready: bool = False
    """Everything is answered with 503, health too."""
    cut: int = 0
    """Send streams in pieces of so many bytes, whatever they cut through; 0: an event at a time."""
    context: int = 0
    """Most words of a prompt; 0: any number."""
    drains: bool = False
    """SIGTERM lets the answers under way finish."""
    no_counts: bool = False
    """Tells no number of tokens."""
    flaws: frozenset[str] = frozenset()
    """Names out of `FLAWS`."""

    @classmethod
    def of(cls, fault: str, every: int) -> "Behaviour":
        """Flawless but for one fault."""
        behaviour = cls()
        setattr(behaviour, fault, every)
        return behaviour

    def says(self, prompt: str) -> list[str]:
        """The answer, token by token: each a word with the space before it."""
        if self.garbage:
            drawn = random.Random(prompt)
            return [f" {drawn.choice(_NOISE)}" for _ in range(drawn.randint(5, 30))]
        words = self.answers.get(prompt, self.default).split(" ")
        return [word if place == 0 else f" {word}" for place, word in enumerate(words)]

    def hears(self, body: dict[str, Any]) -> str:
        """The prompt: a whole chat that it has an answer to, or what was said last."""
        if "messages" not in body:
            return str(body["prompt"])
        said = [str(message["content"]) for message in body["messages"]]
        whole = "\n".join(said)
        return whole if whole in self.answers and "no_system" not in self.flaws else said[-1]

    def answer(self, body: dict[str, Any]) -> tuple[list[str], str]:
        """Return the answer to a request, token by token, and why it ends."""
        tokens, reason = self.says(self.hears(body)), "stop"
        if body.get("temperature") and "no_sampling" not in self.flaws:
            random.Random(None if "no_seed" in self.flaws else body.get("seed")).shuffle(tokens)
        most = body.get("max_tokens") or len(tokens)
        if most < len(tokens) and "no_max_tokens" not in self.flaws:
            tokens, reason = tokens[:most], "length"
        stops = [] if "no_stop" in self.flaws else body.get("stop") or []
        for place in (text.find(stop) for text in ["".join(tokens)] for stop in stops):
            if place >= 0:
                more = len(stops[0]) if "stop_included" in self.flaws else 0
                tokens, reason = _first_letters(tokens, place + more), "stop"
        return tokens, reason


def _first_letters(tokens: list[str], count: int) -> list[str]:
    """Return so many letters of the text, in the same pieces."""
    kept = []
    for token in tokens:
        kept.append(token[:count])
        count -= len(kept[-1])
    return [token for token in kept if token]


_NOISE = ("the", "the", "]]", "Â", "�", "0", "of", "\n")


class Server(ThreadingHTTPServer):
    """Counts requests and keeps their bodies and all headers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], behaviour: Behaviour) -> None:
        super().__init__(address, Handler)
        self.behaviour = behaviour
        self.seen: list[dict[str, Any]] = []
        self.headers: list[Message] = []
        self.leaked: list[bytes] = []
        self.most_at_once = 0
        self.tokens = 0
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._now: set[int] = set()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def now(self) -> int:
        """Return how many requests are under way."""
        return len(self._now)

    def enter(self, body: dict[str, Any]) -> int:
        with self._lock:
            self.seen.append(body)
            if self.behaviour.die_seconds and len(self.seen) == 1:
                threading.Thread(
                    target=_die, args=[self.behaviour.die_seconds], daemon=True
                ).start()
            self._now.add(threading.get_ident())
            self.most_at_once = max(self.most_at_once, len(self._now))
            return next(self._numbers)

    def leave(self) -> None:
        """The caller's thread has answered: before the last byte, since a client may ask again on
        reading that.
        """
        with self._lock:
            self._now.discard(threading.get_ident())

    def __enter__(self) -> "Server":
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, file=sys.stderr)

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.server.headers.append(self.headers)
        return parsed

    def do_GET(self) -> None:
        if self.server.behaviour.never_ready:
            self._json(503, {"error": {"message": "loading model"}})
        elif self.path == "/health":
            self._json(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif self.path == "/metrics" and "no_metrics" not in self.server.behaviour.flaws:
            self._send(
                200,
                f"tokens_total {self.server.tokens}\nrequests_running {self.server.now}\n".encode(),
            )
        else:
            self._json(404, {"error": {"message": f"no route {self.path}"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            self._json(404, {"error": {"message": f"no route {self.path}"}})
            return
        if (body := self._understood(raw)) is None:
            return
        number = self.server.enter(body)
        try:
            self._answer(number, body)
        finally:
            self.server.leave()

    def _answer(self, number: int, body: dict[str, Any]) -> None:
        behaviour = self.server.behaviour
        if behaviour.die_after and number >= behaviour.die_after:
            _die(0)
        if behaviour.never_ready:
            self._json(503, {"error": {"message": "loading model"}})
            return
        self.server.leaked += [b"\1" * (behaviour.leak << 20)] if behaviour.leak else []
        time.sleep(behaviour.first_delay * behaviour.slower)
        if _hits(behaviour.hang_every, number):
            self.server.over.wait()
            return
        if _hits(behaviour.error_every, number) or random.random() < behaviour.error_share:
            self._json(500, {"error": {"message": "the stand-in fails as it was told"}})
            return
        chat = "messages" in body
        tokens, reason = behaviour.answer(body)
        self.server.tokens += len(tokens)
        prompt = len(behaviour.hears(body).split()) + ("wrong_usage" in behaviour.flaws)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": len(tokens),
            "total_tokens": prompt + len(tokens),
        }
        if behaviour.no_counts:
            usage = {}
        if behaviour.cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": behaviour.cached}
        if body.get("stream"):
            self._stream(number, chat, tokens, reason, usage)
            return
        text = "".join(tokens)
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        self._json(
            200, {"choices": [{"index": 0, "finish_reason": reason, **choice}], "usage": usage}
        )

    def _understood(self, raw: bytes) -> dict[str, Any] | None:
        """Return the request, or None after it was refused."""
        flaws, context = self.server.behaviour.flaws, self.server.behaviour.context
        try:
            body: dict[str, Any] = json.loads(raw)
            said = (
                [body["prompt"]]
                if "prompt" in body
                else [message["content"] for message in body["messages"]]
            )
            words = sum(len(text.split()) for text in said)
            int(body.get("max_tokens") or 0)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            if "dies_of_nonsense" in flaws:
                _die(0)
            self._json(
                500 if "blames_itself" in flaws else 400,
                {"error": {"message": f"not understood: {exc}"}},
            )
            return None
        if context and words > context and "any_length" not in flaws:
            self._json(400, {"error": {"message": f"{words} words are more than {context}"}})
            return None
        return body

    def _stream(
        self, number: int, chat: bool, tokens: list[str], reason: str, usage: dict[str, Any]
    ) -> None:
        behaviour = self.server.behaviour
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if chat:
            self._event(
                {
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": None,
                            "delta": {"role": "assistant", "content": ""},
                        }
                    ]
                }
            )
        if "one_piece" in behaviour.flaws:
            tokens = ["".join(tokens)]
        size = behaviour.per_piece
        tokens = ["".join(tokens[start : start + size]) for start in range(0, len(tokens), size)]
        for place, token in enumerate(tokens):
            if place * 2 >= len(tokens):
                if _hits(behaviour.stall_every, number):
                    self.server.over.wait()
                    return
                if _hits(behaviour.truncate_every, number):
                    self.close_connection = True
                    return
                if _hits(behaviour.break_every, number):
                    self._event({"error": {"message": "the stand-in breaks off as it was told"}})
                    break
            if place:
                time.sleep(behaviour.token_delay * behaviour.slower)
            token = (
                token
                if "torn" not in behaviour.flaws or token.isascii()
                else f"{token[:-1]}\N{REPLACEMENT CHARACTER}"
            )
            piece = {"delta": {"content": token}} if chat else {"text": token}
            self._event({"choices": [{"index": 0, "finish_reason": None, **piece}]})
        else:
            if not _hits(behaviour.unfinished_every, number):
                last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
                self._event({"choices": [{"index": 0, "finish_reason": reason, **last}]})
                if usage and "silent_usage" not in behaviour.flaws:
                    self._event({"choices": [], "usage": usage})
                self._raw(b"data: [DONE]\n\n")
        self.server.leave()
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, event: dict[str, Any]) -> None:
        self._raw(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _raw(self, data: bytes) -> None:
        step = self.server.behaviour.cut or len(data)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            with contextlib.suppress(*[OSError] * ("deaf" in self.server.behaviour.flaws)):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            if step < len(data):
                time.sleep(0.0005)

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.server.leave()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _die(seconds: float) -> None:
    time.sleep(seconds)
    print("out of memory: the stand-in dies as it was told", file=sys.stderr, flush=True)
    os._exit(9)


def _hits(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def serve(behaviour: Behaviour | None = None, port: int = 0) -> Server:
    """A server in this process, as a context manager."""
    return Server(("127.0.0.1", port), behaviour or Behaviour())


def main() -> None:
    """Serve in the foreground until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for an engine.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--default", default="one two three four")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    for fault, kind in FAULTS.items():
        parser.add_argument(
            f"--{fault.replace('_', '-')}", type=kind, default=getattr(Behaviour, fault)
        )
    for switch in SWITCHES:
        parser.add_argument(f"--{switch.replace('_', '-')}", action="store_true")
    parser.add_argument("--flaw", action="append", default=[], choices=FLAWS)
    parser.add_argument(
        "--die-loading", default="", help="say this and end with status 3 instead of serving"
    )
    args = parser.parse_args()
    time.sleep(args.load_seconds)
    if args.die_loading:
        sys.exit(args.die_loading)
    faults = {name: getattr(args, name) for name in (*FAULTS, *SWITCHES)}
    behaviour = Behaviour(
        answers=_read(args), default=args.default, flaws=frozenset(args.flaw), **faults
    )
    if "leaves_child" in behaviour.flaws:
        subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(60)"])
    end = threading.Event()
    if "ignores_sigterm" in behaviour.flaws:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif behaviour.drains:
        signal.signal(signal.SIGTERM, lambda *unused: end.set())
    with serve(behaviour, args.port) as server:
        print(f"listening on {server.url}", file=sys.stderr, flush=True)
        end.wait()
        server.shutdown()
        while server.now:
            time.sleep(0.01)


def _read(args: argparse.Namespace) -> dict[str, str]:
    """Its answers."""
    try:
        found: dict[str, str] = json.loads(args.answers.read_text()) if args.answers else {}
    except ValueError:
        if "starts_anyhow" not in args.flaw:
            raise
        return {}
    return found


if __name__ == "__main__":
    main()
