"""Files of logged models, as a server that may be anybody's names them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weighbridge.registry import logged_models


class _Listing(BaseHTTPRequestHandler):
    """Names a file above the folder that it is asked for, and would deliver it."""

    def do_GET(self) -> None:
        files = [{"path": "../../evil.txt", "is_dir": False, "file_size": 4}]
        asked_for_list = self.path.partition("?")[0].endswith("/artifacts")
        body = json.dumps({"files": files}).encode() if asked_for_list else b"evil"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_that_lies_outside_of_its_model_is_not_fetched(address: str, tmp_path: Path) -> None:
    model = SimpleNamespace(artifact_location=f"mlflow-artifacts://{address}/x")
    client = SimpleNamespace(get_logged_model=lambda model_id: model)
    connection: Any = SimpleNamespace(uri=f"http://{address}", client=client)
    to = tmp_path / "a" / "b"
    to.mkdir(parents=True)
    with pytest.raises(Exception, match="Invalid path"):
        logged_models.fetch(connection, "m", to)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
