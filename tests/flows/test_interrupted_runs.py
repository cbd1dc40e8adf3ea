"""A deployer that starts where nothing was interrupted."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from weighbridge.flows.interrupted_runs import mark_crashed
print(mark_crashed("mine", 1.0), "prefect" in sys.modules)
"""


def test_to_hear_that_there_is_nothing_to_mark_takes_no_client_of_prefects() -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body["flow_runs"]["tags"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=ROOT,
            env={
                "PATH": "",
                "PYTHONPATH": ":".join(sys.path),
                "PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}/api",
                "PREFECT_API_AUTH_STRING": "us:secret",
            },
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert done.stdout == "[] False\n", done.stderr
    assert asked == [("/api/flow_runs/filter", "Basic dXM6c2VjcmV0", {"all_": ["mine"]})]
