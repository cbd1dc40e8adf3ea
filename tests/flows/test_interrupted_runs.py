"""A deployer that starts where nothing was interrupted."""

import json
import subprocess
import sys
from pathlib import Path

from tests.stand_ins.http_server import Handler, Server

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from weighbridge.flows.interrupted_runs import mark_crashed
print(mark_crashed("mine", 1.0), "prefect" in sys.modules)
"""


def test_to_hear_that_there_is_nothing_to_mark_takes_no_client_of_prefects() -> None:
    asked = []

    class Prefect(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            asked.append((self.path, self.headers["Authorization"], body["flow_runs"]["tags"]))
            self.answer_json([])

    with Server(Prefect) as server:
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=ROOT,
            env={
                "PATH": "",
                "PYTHONPATH": ":".join(sys.path),
                "PREFECT_API_URL": f"{server.url}/api",
                "PREFECT_API_AUTH_STRING": "us:secret",
            },
            capture_output=True,
            text=True,
        )
    assert done.stdout == "[] False\n", done.stderr
    assert asked == [("/api/flow_runs/filter", "Basic dXM6c2VjcmV0", {"all_": ["mine"]})]
