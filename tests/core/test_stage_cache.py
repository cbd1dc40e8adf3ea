"""Finished stages are reused while their inputs, arguments, version and artifacts hold."""

import multiprocessing
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from weighbridge.core.artifact import Artifact
from weighbridge.core.stage_cache import StageCache, canonical
from weighbridge.core.store import Store
from weighbridge.core.workspace import Workspace


class Made(BaseModel):
    artifact: Artifact
    note: str = ""


class Args(BaseModel):
    rate: float = 0.1
    steps: int = 3


@pytest.fixture
def cache(workspace: Workspace) -> StageCache:
    return workspace.stages


def make(store: Store, text: str = "made") -> Made:
    with store.scratch() as scratch:
        (scratch / "file").write_text(text)
        return Made(artifact=store.add(scratch, "jsonl", {"uri": "here"}))


def run(cache: StageCache, args: Args, version: int = 1):  # type: ignore[no-untyped-def]
    return cache.run("stage", version, Made, {"args": args}, lambda: make(cache.store))


def test_second_run_reuses_and_says_since_when(cache: StageCache) -> None:
    first, second = run(cache, Args()), run(cache, Args())
    assert (first.reused, first.why) == (False, "not run before")
    assert second.reused
    assert second.value == first.value
    assert second.why.startswith("same inputs and arguments as on 20")


def test_changed_argument_runs_again_and_is_named(cache: StageCache) -> None:
    run(cache, Args())
    again = run(cache, Args(rate=0.2))
    assert (again.reused, again.why) == (False, "rate is 0.2, was 0.1")


def test_another_plugin_and_a_longer_list_are_one_change_each(cache: StageCache) -> None:
    def asked(*engines: dict[str, object]) -> str:
        inputs = {"args": {"engines": list(engines), "rate": 0.1}}
        return cache.run("stage", 1, Made, inputs, lambda: make(cache.store)).why

    vllm = {"kind": "vllm", **{f"option {n}": n for n in range(40)}}
    gguf = {"kind": "llama_cpp", **{f"flag {n}": n for n in range(40)}}
    asked(vllm)
    assert asked(gguf) == "engines[0] changed"
    assert asked(gguf, vllm) == "engines changed"


def test_changed_stage_version_runs_again(cache: StageCache) -> None:
    run(cache, Args())
    assert run(cache, Args(), version=2).why == "the stage itself changed (version 1 to 2)"


def test_missing_artifact_is_no_hit(cache: StageCache) -> None:
    first = run(cache, Args())
    (first.value.artifact.path / "file").unlink()
    again = run(cache, Args())
    assert not again.reused
    assert "is gone or damaged" in again.why
    assert cache.store.is_whole(again.value.artifact)


def test_unreadable_record_is_no_hit(cache: StageCache) -> None:
    run(cache, Args())
    next(cache.root.glob("stage/*.json")).write_text("{")
    assert not run(cache, Args()).reused


def test_failing_stage_is_not_recorded(cache: StageCache) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.run("stage", 1, Made, {"args": Args()}, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert not run(cache, Args()).reused


def test_value_not_worth_keeping_is_returned_and_tried_again(cache: StageCache) -> None:
    refused = cache.run(
        "stage", 1, Made, {"args": Args()}, lambda: make(cache.store), keep=lambda _: False
    )
    assert refused.value.artifact
    assert not run(cache, Args()).reused


def test_forecast_changes_nothing_and_agrees_with_run(cache: StageCache) -> None:
    before = cache.forecast("stage", 1, Made, {"args": Args()})
    assert before.value is None
    assert not cache.root.exists()
    made = run(cache, Args())
    assert cache.forecast("stage", 1, Made, {"args": Args()}).value == made.value


def test_artifacts_count_by_digest_and_not_by_origin() -> None:
    one = Artifact(digest="sha256:aa", format="gguf", size=1, origin={"uri": "a"})
    two = Artifact(digest="sha256:aa", format="gguf", size=1, origin={"uri": "b"})
    assert canonical({"x": [one]}) == canonical({"x": (two,)})


def test_secrets_cannot_identify_a_stage() -> None:
    with pytest.raises(TypeError, match="secret"):
        canonical({"key": SecretStr("hidden")})


def _race(home: Path, marks: Path) -> None:
    cache = StageCache(home / "stages", Store(home / "store"))

    def compute() -> Made:
        (marks / str(time.monotonic_ns())).touch()
        time.sleep(0.3)
        return make(cache.store)

    cache.run("stage", 1, Made, {"args": Args()}, compute)


def test_two_processes_asking_at_once_compute_once(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_race, args=(tmp_path, marks)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert len(list(marks.iterdir())) == 1
