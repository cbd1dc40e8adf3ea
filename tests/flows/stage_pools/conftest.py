"""A Prefect, a shared store, and work pools whose workers are threads of the test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MACHINE_CACHE
from tests.stand_ins.bucket import Bucket
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.flows.prefect_server import prefect_api

STORE = "s3://bucket/team"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect for all tests here: take a pool of your own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("empty")))
        with prefect_api(Settings(home=tmp_path_factory.mktemp("home"), cache=MACHINE_CACHE)):
            yield


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket()
    bucket.take_place(monkeypatch)
    monkeypatch.setenv("WEIGHBRIDGE_STORE", STORE)
    return bucket


@pytest.fixture
def pool(api: None, bucket: Bucket, tmp_path: Path) -> Iterator[Any]:
    from tests.flows.pools import Pool

    pool = Pool(f"pool-{abs(hash(tmp_path)):x}")
    pool.make()
    with pool.working():
        yield pool


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from weighbridge.flows import stage_pools

    monkeypatch.setattr(stage_pools, "FIRST_POLL", 0.2)


def made(workspace: Workspace, content: str = "weights") -> Artifact:
    with workspace.store.scratch() as scratch:
        (scratch / "model.safetensors").write_text(content)
        return workspace.store.add(scratch, "safetensors")
