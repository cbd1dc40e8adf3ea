"""What runs in a pod of the stand-in: a model of four words behind what a served Bento has in a
pod.

`RequestWatch` and `pod_drain.py` are those of a Bento, so that what a pod says of itself, and how
it is ended, is the same here.
"""

import asyncio
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from weighbridge.serving import pod_drain
from weighbridge.serving.request_watch import RequestWatch

_DRAIN: Final = re.compile(r"pod_drain\.py \S+ --least ([\d.]+) --most ([\d.]+)")
_STOP_SECONDS: Final = 10


@dataclass(frozen=True)
class Image:
    """How what an image holds behaves."""

    load_seconds: float = 0.02
    """Until it answers."""
    token_seconds: float = 0.0
    """Between two words of a stream; an answer that is none comes at once."""
    pull_error: str = ""
    """Why it cannot be pulled; empty: it can."""
    private: bool = False
    """Pulled only where a pod names a Secret with a login."""
    crash: str = ""
    """Reason for which its process ends once it has loaded: `OOMKilled`, `Error`."""
    last_words: str = ""
    """What it logs before it ends."""
    status: int = 200
    """Of every answer."""
    answer: str = "one two three four"


@dataclass
class Process:
    """A running container: its address, its log, how it ends."""

    image: Image
    address: tuple[str, int]
    environment: Mapping[str, str]
    log: list[tuple[float, str]] = field(default_factory=list)
    exit_reason: str = ""
    """Why it has ended by itself; empty: it runs."""

    def __post_init__(self) -> None:
        import uvicorn

        self._began = time.monotonic()
        host, port = self.address
        app = RequestWatch(
            self._answer, self.environment.get("WEIGHBRIDGE_REVISION", ""), self._loaded, _NoGauge
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        self.say("it loads")

    def say(self, line: str) -> None:
        """Write a line to the container's log."""
        self.log.append((time.time(), line))

    def probe(self, path: str) -> bool:
        """Whether a probe at this path succeeds."""
        connection = http.client.HTTPConnection(*self.address, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status < 400
        except OSError:
            return False
        finally:
            connection.close()

    def look(self) -> None:
        """End where the image says so: what crashes does so once it has loaded."""
        if self.image.crash and self._has_loaded and not self.exit_reason:
            if self.image.last_words:
                self.say(self.image.last_words)
            self.exit_reason = self.image.crash
            self.kill()

    def run(self, command: list[str], hurry: float = 1.0) -> None:
        """Run a command in the container, as its preStop does, and wait until it has ended.

        Of commands it knows the one that waits until nothing is under way, and `sleep`.

        Args:
            command: what is run.
            hurry: how many of the command's seconds pass in one.
        """
        text = " ".join(command)
        if match := _DRAIN.search(text):
            url = f"http://{self.address[0]}:{self.address[1]}"
            least, most = (str(float(seconds) / hurry) for seconds in match.groups())
            options = [url, "--least", least, "--most", most]
            subprocess.run([sys.executable, "-I", str(pod_drain.__file__), *options], check=False)
        elif match := re.search(r"sleep ([\d.]+)", text):
            time.sleep(float(match[1]) / hurry)

    def terminate(self, seconds: float) -> None:
        """End as a server does on SIGTERM: no new connections, answers under way go on."""
        self._server.should_exit = True
        self._thread.join(seconds)
        self.kill()

    def kill(self) -> None:
        """End at once, whatever is under way."""
        self._server.force_exit = True
        self._server.should_exit = True
        self._thread.join(5)

    @property
    def _has_loaded(self) -> bool:
        return time.monotonic() - self._began >= self.image.load_seconds

    async def _loaded(self) -> bool:
        return self._has_loaded

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request as an engine does."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/livez":
            await _send_json(send, 200, {})
        elif not self._has_loaded:
            await _send_json(send, 503, {"error": {"message": "it loads"}})
        elif scope["path"] == "/v1/models":
            await _send_json(send, 200, {"object": "list", "data": [{"id": "stand-in"}]})
        elif scope["method"] != "POST" or not scope["path"].endswith("completions"):
            await _send_json(send, 404, {"error": {"message": "unknown"}})
        elif self.image.status != 200:
            await _send_json(send, self.image.status, {"error": {"message": "it fails"}})
        else:
            await self._complete(json.loads(body or b"{}"), send)

    async def _complete(self, asked: Mapping[str, Any], send: Any) -> None:
        words = self.image.answer.split()
        if not asked.get("stream"):
            message = {"role": "assistant", "content": self.image.answer}
            choice = {"index": 0, "message": message, "text": self.image.answer}
            usage = {"prompt_tokens": 1, "completion_tokens": len(words)}
            choices = [{**choice, "finish_reason": "stop"}]
            await _send_json(send, 200, {"choices": choices, "usage": usage})
            return
        await _send_start(send, 200, b"text/event-stream")
        for word in words:
            await asyncio.sleep(self.image.token_seconds)
            choice = {"index": 0, "delta": {"content": f"{word} "}, "text": f"{word} "}
            event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class _NoGauge:
    """The gauge of a server that nobody scrapes."""

    def set(self, value: float) -> None:
        """Forget it."""


async def _send_json(send: Any, status: int, document: object) -> None:
    await _send_start(send, status, b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


async def _send_start(send: Any, status: int, kind: bytes) -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
