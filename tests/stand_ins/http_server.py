"""What small HTTP servers of the tests have in common::

    class Echo(Handler):
        def do_POST(self) -> None:
            self.answer(self.body())

    with Server(Echo) as server:
        httpx.post(server.url, content=b"hello")

`openai` has a server of its own: it runs by its path in any environment, and lies alone in Bentos.
"""

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class Server(ThreadingHTTPServer):
    """Serves within its block, on a free port of 127.0.0.1; all its threads end with the block."""

    daemon_threads = False

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        # Else their threads would wait for what clients say next, who keep connections for later.
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not the server's error; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers with lengths, so that connections stay open, and says nothing of it."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        """Return what the request brings; call it once."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(
        self, content: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.begin_answer(len(content), status, headers)
        self.wfile.write(content)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def begin_answer(
        self, length: int, status: int, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send all but the content."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at what happened, not at a log."""


class _Files(Handler, SimpleHTTPRequestHandler):
    pass


def server_of_files(folder: Path) -> Server:
    """Return a server of a folder's files, with pages that list them."""
    return Server(partial(_Files, directory=str(folder)))
