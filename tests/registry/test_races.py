"""Homes on different machines that use one PostgreSQL."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tests.stand_ins.postgresql import Postgresql, programs
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.registry import Registry
from weighbridge.registry.locks import alone

HOMES, PROCESSES = 4, 8


@pytest.fixture(scope="module")
def database() -> Iterator[Postgresql]:
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with Postgresql() as database:
        yield database


def settings(folder: Path, number: int, url: str) -> Settings:
    return Settings(
        home=folder / f"home-{number % HOMES}",
        database_url=url,
        artifact_root=str(folder / "artifacts"),
    )


def _register(folder: Path, number: int, url: str, barrier: Barrier) -> None:
    mine = settings(folder, number, url)
    barrier.wait()
    # Connecting is part of it: whoever is first makes the tables.
    registry = Registry.connect(mine)
    run = registry.release("demo", 1, params={}, tags={})
    registry.register("demo", "base", stored(mine), run=run)


def stored(mine: Settings) -> Artifact:
    store = Store(mine.home / "store")
    with store.scratch() as scratch:
        (scratch / "weights.bin").write_text("weights")
        return store.add(scratch, "safetensors")


@pytest.mark.slow
def test_of_eight_processes_in_four_homes_one_registers_and_all_find_one_version(
    database: Postgresql, tmp_path: Path
) -> None:
    # One process imports MLflow, and each child is a copy of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["weighbridge.registry.api", "mlflow"])
    barrier = context.Barrier(PROCESSES)
    children = [
        context.Process(target=_register, args=(tmp_path, number, database.url, barrier))
        for number in range(PROCESSES)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    registry = Registry.connect(settings(tmp_path, 0, database.url))
    assert [version.version for version in registry.versions("demo")] == ["1"]
    experiment = registry.connection.experiment("demo")
    assert len(registry.connection.client.search_logged_models([experiment])) == 1


def _hold(mine: Settings, held: "multiprocessing.synchronize.Event") -> None:
    with alone("change", mine):
        held.set()
        time.sleep(600)


def test_a_lock_of_a_process_that_is_killed_is_free(database: Postgresql, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    child = context.Process(target=_hold, args=(settings(tmp_path, 1, database.url), held))
    child.start()
    try:
        assert held.wait(60)
        began = time.monotonic()
        with alone("another change", settings(tmp_path, 2, database.url)):
            assert time.monotonic() - began < 30
    finally:
        child.kill()
        child.join()
    with alone("change", settings(tmp_path, 2, database.url)):
        pass
