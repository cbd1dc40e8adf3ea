"""The command, for tests that run the whole chain."""

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.flows.chain import recipe, write, write_data
from tests.flows.chain_outcome import assert_nothing_runs
from tests.warm.command import WarmCommand
from weighbridge.core.settings import Settings

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(test_run: tuple[Path, int]) -> Iterator[WarmCommand]:
    """The command, where it is not run as a user runs it."""
    with WarmCommand(*test_run) as command:
        yield command


@pytest.fixture
def warm(command: WarmCommand, tmp_path: Path) -> Run:
    """The command, run to its end by a process whose libraries are imported."""
    return partial(command.run, folder=tmp_path)


@pytest.fixture
def small(tmp_path: Path, tiny_model: Path) -> Path:
    """A recipe of seconds over the tiny model."""
    data = write_data(tmp_path / "data")
    return write(tmp_path / "recipe.yaml", recipe(f"file://{tiny_model}", f"file://{data}"))


@pytest.fixture
def nothing_left_serving(tmp_path: Path, warm: Run) -> Iterator[None]:
    """Nothing of a test's own home runs once it is over."""
    yield
    if Settings().home.is_relative_to(tmp_path):  # not one that others go on from
        warm("down")
    assert_nothing_runs(tmp_path)
