"""The whole chain goes on: after a kill, and in a home that finds everything in a bucket."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import live_in
from tests.flows.chain import recipe, write, write_data
from tests.flows.chain_outcome import address, roles, stages, winner_said
from tests.flows.conftest import Run
from tests.warm.command import WarmCommand
from weighbridge.core.settings import Settings
from weighbridge.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left_serving")]


def test_killed_in_any_stage_the_next_run_goes_on_and_registers_nothing_twice(
    small: Path, tmp_path: Path, command: WarmCommand, warm: Run
) -> None:
    points: dict[str, Callable[[str], bool]] = {
        "download": lambda said: any(tmp_path.glob("home/store/blobs/*/*")),
        "finetune": lambda said: any(
            tmp_path.glob("home/runs/*/checkpoint-4/weighbridge-whole.json")
        ),
        "optimize": lambda said: "proving gguf-F16: loaded" in said,
        "weigh": lambda said: "llama_cpp/gguf-F16: measured" in said,
        "package": lambda said: any(tmp_path.glob("bentoml/tmp/weighbridge-*/home/models")),
    }
    said = {
        stage: _killed_at(reached, small, tmp_path / f"killed in {stage}", command)
        for stage, reached in points.items()
    }
    for stage, words in said.items():
        assert stage not in stages(words), words
    assert "going on after checkpoint-4" in said["optimize"]
    done = warm("run", small)
    assert done.returncode == 0, done.stderr + done.stdout
    assert roles() == ["adapter", "base", "merged", "variant", "variant"]
    assert stages(done.stdout)["weigh"].startswith("reused: ")
    assert httpx.get(f"{address(small)}/health").status_code == 200


def _killed_at(
    reached: Callable[[str], bool], path: Path, folder: Path, command: WarmCommand
) -> str:
    """A run that gets SIGKILL as soon as it has `reached` a point, told by what it has printed or
    by its files.
    """
    folder.mkdir()
    log = folder / "log"
    pid = command.start("run", path, out=log, err=log)
    while not reached(log.read_text()):
        assert psutil.pid_exists(pid), log.read_text()
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    return log.read_text()


def test_what_one_home_keeps_in_a_bucket_an_empty_one_serves_and_computes_nothing(
    tmp_path: Path, tiny_model: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, warm: Run
) -> None:
    from weighbridge.tasks.push import push_folder
    from weighbridge.tasks.sources.s3 import S3Source

    data = write_data(tmp_path / "data")
    push_folder(tiny_model, "safetensors", S3Source().parse(f"s3://{bucket}/base"))
    push_folder(data, "jsonl", S3Source().parse(f"s3://{bucket}/data"))
    monkeypatch.setenv("WEIGHBRIDGE_ARTIFACT_ROOT", f"s3://{bucket}/mlflow")
    monkeypatch.setenv("WEIGHBRIDGE_STORE", f"s3://{bucket}/store")
    there = recipe(
        f"s3://{bucket}/base", f"s3://{bucket}/data", package__push=f"s3://{bucket}/bentos"
    )
    path = write(tmp_path / "s3.yaml", there)
    done = warm("run", path)
    assert done.returncode == 0, done.stderr + done.stdout
    registry = Registry.connect(Settings())
    champion = registry.champion("chain")
    assert champion is not None
    assert champion.tags["bento_pushed"].startswith(f"s3://{bucket}/bentos/")
    assert registry.measurement_of(champion)

    warm("down")
    live_in(tmp_path / "other", monkeypatch)
    again = warm("run", path)
    try:
        assert again.returncode == 0, again.stderr + again.stdout
        said = stages(again.stdout)
        assert said.pop("deploy"), "what serves is of each home"
        assert all(text.startswith("reused: ") for text in said.values()), said
        assert winner_said(again.stdout) == winner_said(done.stdout)
        asked = warm("ask", "chain", "order 7", "--max-tokens", "8")
        assert asked.stdout.strip(), asked.stderr
    finally:
        warm("down")
