"""Stages that are handed over to a work pool: what comes back, and what becomes of lost ones."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.chain import recipe as chain_recipe
from tests.flows.stage_pools.conftest import made
from tests.stand_ins.bucket import Bucket
from tests.waiting import until
from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, GateFailed, Unavailable, WeighbridgeError
from weighbridge.core.versions import own_version
from weighbridge.core.workspace import Workspace
from weighbridge.flows import remote_stages
from weighbridge.flows.cached_stages import CachedStage

REMOVAL = "kubectl -n ml delete job finetune-x7"
Compute = Callable[[], Artifact]


def recipe_of(pool: Any, **settings: Any) -> Recipe:
    place = {"pool": pool.name, **settings}
    return Recipe.model_validate(
        chain_recipe("file:///model", "file:///data", run={"finetune": place})
    )


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Callable[[Compute], None]:
    """Let a worker's stage finetune compute in this way."""

    def put(compute: Compute) -> None:
        steps = {**remote_stages._STEPS, "finetune": lambda *_: step(compute)}
        monkeypatch.setattr(remote_stages, "_STEPS", steps)

    return put


def step(compute: Compute, version: int = 3) -> CachedStage[Artifact]:
    return CachedStage("finetune", version, Artifact, {"of": "these"}, compute)


def never() -> Artifact:
    raise AssertionError("it is to run elsewhere")


def release(recipe: Recipe, version: int = 3) -> Any:
    """What a release does of its stage finetune."""
    from weighbridge.flows.placed_stages import PlacedStages
    from weighbridge.flows.prefect_adapter import release_flow, run_stage

    workspace = Workspace()

    @release_flow(name="release")
    def flow() -> Any:
        placed = PlacedStages(recipe, workspace)
        inputs = remote_stages.StageInputs(model=made(workspace, "base"))
        return run_stage("finetune", lambda: placed.run(step(never, version), inputs))

    return flow()


def ended_with(recipe: Recipe, version: int = 3) -> WeighbridgeError:
    with pytest.raises(WeighbridgeError) as caught:
        release(recipe, version)
    return caught.value


def test_a_stage_on_a_pool_gives_what_the_worker_made_and_is_a_child_of_the_release(
    pool: Any, bucket: Bucket, there: Callable[[Compute], None]
) -> None:
    from prefect.client.orchestration import get_client

    from tests.flows.pools import runs_of

    there(lambda: made(Workspace()))
    outcome = release(recipe_of(pool))
    assert not outcome.reused
    assert (outcome.value.path / "model.safetensors").read_text() == "weights"
    (run,) = pool.runs
    child = next(one for one in runs_of("stage") if one["id"] == str(run))
    with get_client(sync_client=True) as client:
        parent = client.read_task_run(child["parent_task_run_id"]).flow_run_id
    assert str(parent) == runs_of("release")[-1]["id"]
    given = child["parameters"]
    assert given["inputs"].startswith("sha256:")
    assert set(given) == {*("name", "title", "recipe", "inputs", "store", "release", "version")}
    assert child["labels"]["weighbridge.host"]

    again = release(recipe_of(pool))
    assert again.reused
    assert again.value == outcome.value
    assert pool.runs == [run], "nothing is handed over that is there"


def test_a_known_error_there_is_the_same_error_here(
    pool: Any, there: Callable[[Compute], None]
) -> None:
    def fail() -> Artifact:
        raise GateFailed("fine-tuning", "the loss is NaN", "lower the rate")

    there(fail)
    error = ended_with(recipe_of(pool))
    assert type(error) is GateFailed
    assert str(error) == "fine-tuning: the loss is NaN; lower the rate"
    assert len(pool.runs) == 1, "another try would end alike"


def test_a_run_that_is_lost_is_begun_again_and_ends_with_the_reason_where_that_does_not_help(
    pool: Any, there: Callable[[Compute], None], caplog: pytest.LogCaptureFixture
) -> None:
    pool.fates = ["crashes"] * 2
    with caplog.at_level(logging.WARNING, "weighbridge"):
        error = ended_with(recipe_of(pool, retries=1))
    assert "the pod was evicted; it is begun again" in caplog.text
    assert type(error) is Unavailable
    assert "the pod was evicted; it was begun again 1 times; see the log of its w" in str(error)
    assert len(pool.runs) == 2
    # A container that has ended keeps its name, and podman refuses another of that name.
    assert len(set(names_of(pool.runs))) == 2


REFUSED = "Failed to submit flow run to infrastructure: ImageNotFound: no such image"


def test_one_that_was_refused_is_begun_again_after_a_while(
    pool: Any, there: Callable[[Compute], None], caplog: pytest.LogCaptureFixture
) -> None:
    pool.fates, pool.crash = ["crashes"], REFUSED
    there(lambda: made(Workspace()))
    with caplog.at_level(logging.WARNING, "weighbridge"):
        release(recipe_of(pool, start_deadline=40))
    assert "no such image; it is begun again in 4 s" in caplog.text
    first, second = pool.taken
    assert second - first >= 4


def test_one_that_was_refused_stays_so_where_the_release_is_interrupted_in_between(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.flows.pools import state_of
    from weighbridge.flows.stage_pools import StagePools

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    pool.fates, pool.crash = ["crashes"], REFUSED
    monkeypatch.setattr(StagePools, "_begin_again", interrupted)
    with pytest.raises(KeyboardInterrupt):
        release(recipe_of(pool, start_deadline=10))
    [run] = pool.runs
    assert state_of(run) == "CRASHED"


def names_of(runs: list[Any]) -> list[str]:
    """The names of the containers, or of whatever a worker starts."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        variables = [client.read_flow_run(run).job_variables or {} for run in runs]
    return [given["name"] for given in variables]


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ("Flow run infrastructure exited with non-zero status code 137. Killed", "more memory"),
        ("Process exited with status code: -9. Process exited due to a SIGKILL", "more memory"),
        ("Flow run infrastructure exited with non-zero status code 1.", "does its command find"),
        ("Failed to submit flow run to infrastructure: RuntimeError: no image", "of its worker$"),
    ],
)
def test_how_a_process_was_lost_decides_what_there_is_to_do(
    pool: Any, why: str, remedy: str
) -> None:
    pool.fates, pool.crash = ["crashes"], why
    error = ended_with(recipe_of(pool, retries=0))
    assert re.search(remedy, error.remedy)
    assert why in error.wrong


def test_a_process_that_gives_no_sign_of_life_is_taken_for_lost(
    pool: Any, there: Callable[[Compute], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.flows.pools import state_of
    from weighbridge.flows import stage_pools

    monkeypatch.setattr(stage_pools, "SILENCE", 5.0)
    there(lambda: made(Workspace()))
    pool.fates = ["falls silent"]
    assert release(recipe_of(pool)).value.format == "safetensors"
    silent, _ = pool.runs
    until(lambda: state_of(silent) == "CRASHED", 10, poll=0.2)


def test_a_job_that_does_not_begin_ends_within_the_deadline_with_what_its_worker_said(
    pool: Any, there: Callable[[Compute], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.flows import stage_pools

    monkeypatch.setattr(stage_pools, "_last_warning", lambda *_: "ErrImagePull: no such image")
    pool.fates = ["is not begun"]
    error = ended_with(recipe_of(pool, start_deadline=0.3))
    assert type(error) is Unavailable
    assert str(error).endswith("worker took it: ErrImagePull: no such image; see the pool's page")


def test_what_interrupts_the_release_cancels_what_it_has_handed_over(
    pool: Any, there: Callable[[Compute], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.flows.pools import runs_of, state_of
    from weighbridge.flows import stage_pools

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    pool.fates = ["is not begun"]
    monkeypatch.setattr(stage_pools, "_look_at_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        release(recipe_of(pool))
    run = runs_of("stage")[-1]["id"]
    until(lambda: state_of(run).startswith("CANCEL"), 10, poll=0.2)


@pytest.fixture
def cluster(api: None, bucket: Bucket, tmp_path: Path) -> Iterator[Any]:
    """A pool whose worker makes Jobs in Kubernetes."""
    from tests.flows.pools import Pool

    pool = Pool(f"cluster-{abs(hash(tmp_path)):x}")
    pool.make(kind="kubernetes")
    pool.infrastructure = "ml:finetune-x7"
    with pool.working():
        yield pool


def test_a_job_that_waits_in_a_cluster_is_named_where_its_run_is_given_up(cluster: Any) -> None:
    cluster.fates = ["is not begun"]
    error = ended_with(recipe_of(cluster, start_deadline=0.3))
    assert error.remedy.endswith("; its Job waits in the cluster still: " + REMOVAL)


def test_a_job_that_waits_in_a_cluster_is_named_where_the_release_is_interrupted(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from weighbridge.flows import stage_pools

    # Once the worker has told what it made.
    def interrupted(child: Any, run: Any, _: object) -> None:
        if run.infrastructure_pid:
            raise KeyboardInterrupt

    cluster.fates = ["is not begun"]
    monkeypatch.setattr(stage_pools, "_look_at_start", interrupted)
    with caplog.at_level(logging.WARNING, "weighbridge"), pytest.raises(KeyboardInterrupt):
        release(recipe_of(cluster))
    assert f"finetune: its Job waits in the cluster still: {REMOVAL}" in caplog.text


def test_one_that_cannot_be_begun_cancels_those_that_were_begun_beside_it(pool: Any) -> None:
    from tests.flows.pools import runs_of, state_of
    from weighbridge.flows.prefect_adapter import release_flow
    from weighbridge.flows.stage_pools import Order, StagePools

    pool.fates = ["is not begun"]
    recipe, workspace = recipe_of(pool), Workspace()
    place = recipe.run.place("finetune")
    assert place is not None
    there = made(workspace)
    gone = there.model_copy(update={"digest": f"sha256:{0:064}"})
    first, second = (
        Order(step(never), remote_stages.StageInputs(model=model), place, title)
        for title, model in (("the first", there), ("the second", gone))
    )

    @release_flow(name="release")
    def flow() -> None:
        StagePools(recipe, workspace).run_all([first, second])

    with pytest.raises(WeighbridgeError, match="fetching artifact sha256:0000"):
        flow()
    begun = [run["id"] for run in runs_of("stage") if run["name"] == "the first"]
    assert len(begun) == 1
    until(lambda: state_of(begun[0]).startswith("CANCEL"), 10, poll=0.2)
    assert not [run for run in runs_of("stage") if run["name"] == "the second"]


def test_a_worker_of_another_release_refuses_and_says_what_to_install(
    pool: Any, there: Callable[[Compute], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.flows import stage, stage_pools

    there(never)
    newer = ended_with(recipe_of(pool), version=4)
    assert "its stage finetune is of version 3, not 4; install there: pip install" in str(newer)
    versions = iter([own_version(), "99.0"])
    for module in (stage_pools, stage):
        monkeypatch.setattr(module, "own_version", lambda: next(versions, "0.1"))
    other = ended_with(recipe_of(pool))
    assert type(other) is BadInput
    assert "install there: pip install weighbridge==" in str(other)
