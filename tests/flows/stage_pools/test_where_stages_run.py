"""Where stages run: pools are checked beforehand, candidates are weighed side by side, and two
on one machine take turns.
"""

import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.flows.chain import recipe as chain_recipe
from tests.flows.stage_pools.conftest import made
from tests.stand_ins.bucket import Bucket
from weighbridge.configs.recipe import Recipe
from weighbridge.configs.run_args import RunArgs
from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.flows.cached_stages import CachedStage


def check(place: dict[str, Any]) -> str:
    from weighbridge.flows import pool_checks

    try:
        pool_checks.check(RunArgs.model_validate({"default": place}), Workspace())
    except WeighbridgeError as exc:
        return str(exc)
    return "nothing"


def test_a_pool_that_cannot_run_stages_is_told_at_once(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.flows.pools import Pool

    assert check({"pool": pool.name, "job_variables": {"cpus": 4}}) == "nothing"
    assert "has no such pool; make it: weighbridge pools apply --type process --pool gpux" in check(
        {"pool": "gpux"}
    )
    misspelt = check({"pool": pool.name, "job_variables": {"cpu": 4}})
    assert "its template has no variable cpu; did you mean cpus?" in misspelt
    assert "cpus: 'four' is not of type 'integer'" in check(
        {"pool": pool.name, "job_variables": {"cpus": "four"}}
    )
    idle = Pool(f"{pool.name}-idle")
    idle.make(worker=False)
    assert "no worker of it is alive; start one" in check({"pool": idle.name})
    monkeypatch.delenv("WEIGHBRIDGE_STORE")
    assert "WEIGHBRIDGE_STORE is not set; set WEIGHBRIDGE_STORE=" in check({"pool": pool.name})


def test_candidates_are_weighed_side_by_side_and_one_that_is_lost_does_not_stop_the_others(
    api: None, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.flows.pools import Pool
    from tests.tasks.made import measured
    from weighbridge.flows import placed_stages, stage
    from weighbridge.flows.placed_stages import PlacedStages
    from weighbridge.flows.prefect_adapter import release_flow
    from weighbridge.tasks.download import Downloaded
    from weighbridge.tasks.measurement import Candidate, Measurement

    together = threading.Barrier(2, timeout=60)

    def weigh(candidate: Candidate) -> Measurement:
        together.wait()
        label = candidate.variant.label
        found = {"candidate": candidate, "machine": {"host": label}, "predictions": None}
        return measured(label).model_copy(update=found)

    def candidate_step(candidate: Candidate, *_: object) -> CachedStage[Measurement]:
        compute = partial(weigh, candidate)
        return CachedStage(
            "weigh.candidate", 1, Measurement, {"of": candidate}, compute, lambda _: False
        )

    # Both would wait for the lock of this machine, which each has one of its own otherwise.
    monkeypatch.setattr(stage, "_ONE_AT_A_TIME", ())
    monkeypatch.setattr(placed_stages.cached_stages, "candidate_step", candidate_step)
    pool = Pool(f"pair-{abs(hash(tmp_path)):x}", workers=2)
    pool.make()
    pool.fates = ["crashes"]
    workspace = Workspace()
    data = made(workspace, "rows")
    candidates = [
        one.candidate.model_copy(
            update={
                "variant": one.candidate.variant.model_copy(
                    update={"artifact": made(workspace, one.candidate.label)}
                )
            }
        )
        for one in map(measured, ("lost", "q8", "q4"))
    ]
    document = chain_recipe(
        "file:///model", "file:///data", run={"weigh": {"pool": pool.name, "retries": 0}}
    )
    placed = PlacedStages(Recipe.model_validate(document), workspace)
    place = Recipe.model_validate(document).run.place("weigh")
    assert place is not None

    @release_flow(name="release")
    def flow() -> list[Measurement]:
        return placed._measure(candidates, Downloaded(model=data, data=data), None, place)

    with pool.working():
        lost, q8, q4 = flow()
    assert "the pod was evicted" in lost.failure
    assert lost.machine == {}
    assert not [one.failure for one in (q8, q4) if one.failure]
    assert [one.machine for one in (q8, q4)] == [{"host": "q8"}, {"host": "q4"}]
    assert [one.candidate.label for one in (lost, q8, q4)] == [
        candidate.label for candidate in candidates
    ]
    assert pool.most_at_once == 2


def test_two_that_weigh_on_one_machine_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.flows.stage import _alone_on_this_machine

    # Not the lock by which this machine's own weighings take turns.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inside = threading.Event()

    def second() -> None:
        with _alone_on_this_machine():
            inside.set()

    with _alone_on_this_machine():
        thread = threading.Thread(target=second)
        thread.start()
        assert not inside.wait(0.2)
    assert inside.wait(10)
    thread.join()


def test_a_plan_says_that_stages_on_pools_take_a_shared_store(tmp_path: Path) -> None:
    from weighbridge.flows.plan import plan

    document = chain_recipe("file:///model", "file:///data", run={"default": {"pool": "cpu"}})
    with pytest.raises(BadInput, match="WEIGHBRIDGE_STORE is not set"):
        plan(Recipe.model_validate(document), Workspace(Settings(home=tmp_path, store="")))
