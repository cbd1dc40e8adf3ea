"""Files of logged models, as a server that may be anybody's names them."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stand_ins.http_server import Handler, Server
from weighbridge.registry import logged_models


class _Listing(Handler):
    """Names a file above the folder that it is asked for, and would deliver it."""

    def do_GET(self) -> None:
        files = [{"path": "../../evil.txt", "is_dir": False, "file_size": 4}]
        asked_for_list = self.path.partition("?")[0].endswith("/artifacts")
        self.answer(json.dumps({"files": files}).encode() if asked_for_list else b"evil")


@pytest.fixture
def address() -> Iterator[str]:
    with Server(_Listing) as server:
        yield server.url.removeprefix("http://")


def test_a_file_that_lies_outside_of_its_model_is_not_fetched(address: str, tmp_path: Path) -> None:
    model = SimpleNamespace(artifact_location=f"mlflow-artifacts://{address}/x")
    client = SimpleNamespace(get_logged_model=lambda model_id: model)
    connection: Any = SimpleNamespace(uri=f"http://{address}", client=client)
    to = tmp_path / "a" / "b"
    to.mkdir(parents=True)
    with pytest.raises(Exception, match="Invalid path"):
        logged_models.fetch(connection, "m", to)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
