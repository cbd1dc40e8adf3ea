"""Repeat: who runs again, in which order, until when, and what is kept of it."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from tests.tasks.made import REFERENCE, at_rates, load, measured
from weighbridge.core import plugins
from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks import weigh
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Measurement, Variant
from weighbridge.tasks.repeat import Repeated, finalists, is_void, repeat
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.statistics.verdict import Claim
from weighbridge.tasks.weigh_args import WeighArgs

METRICS = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]})
SLOW, FAST, FASTER = (
    measured("slow", speed=300),
    measured("fast", speed=500),
    measured("faster", speed=510),
)
CHAMPION = measured("champion", speed=480)
OBJECTIVE = Objective(SelectArgs())


def improvement(champion: Measurement, challenger: Measurement) -> Claim:
    return OBJECTIVE.improvement(champion, challenger).claim


def steady(block: int) -> float:
    return 1.0


class Runs:
    """Runs that are made up: a speed per candidate, noise, and what the machine does meanwhile."""

    def __init__(
        self, speeds: dict[str, float], noise: float = 0.002, pace: Callable[[int], float] = steady
    ) -> None:
        self.speeds = speeds
        self.noise = noise
        self.pace = pace
        self.seen: list[tuple[int, str]] = []
        self.killed_in: int | None = None
        self.draws = random.Random(5)

    def __call__(self, benchmark: CandidateBenchmark, concurrency: int, block: int) -> LoadFigures:
        if block == self.killed_in:
            raise KeyboardInterrupt
        label = benchmark.candidate.variant.label
        self.seen.append((block, label))
        luck = math.exp(self.draws.gauss(0, self.noise))
        speed = self.speeds[label] * luck * self.pace(block)
        return load(speed, concurrency, requests_per_second=speed / 30)


@pytest.fixture
def again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Repeated]:
    """Repeat without engines."""

    def inputs_of(candidate: Candidate, *_: Any) -> dict[str, Any]:
        return {"artifact": candidate.variant.artifact}

    def run(
        runs: Runs,
        *measurements: Measurement,
        champion: Measurement | None = None,
        attempt: int = 0,
        objective: str = "throughput",
        **options: Any,
    ) -> Repeated:
        def one(benchmark: CandidateBenchmark, concurrency: int, block: int) -> LoadFigures:
            return runs(benchmark, concurrency, block)

        monkeypatch.setattr(CandidateBenchmark, "repeat", one)
        args = WeighArgs.model_validate({"engines": [{"kind": "llama_cpp"}], **options})
        data = measurements[0].candidate.variant.artifact
        select = SelectArgs.model_validate({"objective": objective})
        given = (REFERENCE, champion, data, METRICS, args, select, workspace, attempt)
        return repeat(measurements, *given)

    monkeypatch.setattr(weigh, "inputs_of", inputs_of)
    return run


def labels(found: list[Measurement]) -> list[str]:
    return [one.candidate.variant.label for one in found]


def test_who_may_win_is_repeated_with_the_champion_first() -> None:
    everyone = [SLOW, FAST, FASTER]
    args = SelectArgs()
    assert labels(finalists(everyone, REFERENCE, None, args)) == ["faster", "fast"]
    assert labels(finalists(everyone, REFERENCE, CHAMPION, args)) == ["champion", "faster", "fast"]
    weighed_again = FAST.model_copy(update={"load_seconds": 9.0})
    assert labels(finalists(everyone, REFERENCE, weighed_again, args)) == ["fast", "faster"]


def test_who_breaks_a_limit_or_stands_alone_is_not_repeated() -> None:
    bad = measured("bad", speed=900, right=100)
    assert labels(finalists([bad, SLOW, FAST], REFERENCE, None, SelectArgs())) == ["fast", "slow"]
    assert not finalists([bad, FAST], REFERENCE, None, SelectArgs())
    loose = SelectArgs(max_loss=None)
    assert labels(finalists([bad, FAST], REFERENCE, CHAMPION, loose)) == ["champion", "fast"]
    failed = measured("champion", failure="it died")
    assert not finalists([SLOW, FAST], REFERENCE, failed, SelectArgs())


def test_who_runs_again_is_told_by_the_validation_rows_alone() -> None:
    loose = SelectArgs(max_loss=None)
    bad_at_proving = measured("fast", speed=500, test=100)
    assert labels(finalists([bad_at_proving], REFERENCE, CHAMPION, loose)) == ["champion", "fast"]


def test_nothing_runs_where_no_speed_is_compared(again: Callable[..., Repeated]) -> None:
    runs = Runs({})
    for options in ({"repeats": 0}, {"objective": "size"}):
        repeated = again(runs, SLOW, FAST, **options)
        assert repeated.measurements == [SLOW, FAST]
    assert again(runs, FAST).noise is None
    assert not runs.seen


def test_of_a_goodput_the_champion_alone_runs_again_and_tells_how_the_machine_was(
    again: Callable[..., Repeated],
) -> None:
    sustained = at_rates("sustained", 9.0, 11.0, 10.0)
    assert not finalists([sustained, FAST], REFERENCE, None, SelectArgs(objective="goodput"))
    assert not finalists([FAST], REFERENCE, CHAMPION, SelectArgs(objective="goodput"))
    for pace, held in ((steady, True), (lambda block: 1.0 if block < 2 else 0.9, False)):
        runs = Runs({"champion": 500}, pace=pace)
        repeated = again(
            runs, sustained, champion=CHAMPION, objective="goodput", attempt=int(not held)
        )
        assert [label for _, label in runs.seen] == ["champion"] * 10
        assert repeated.champion
        assert repeated.champion.noise
        assert repeated.champion.noise.drift.steady is held
        assert is_void(repeated) is not held
        assert repeated.measurements == [sustained]


def test_a_champion_alone_runs_on_where_its_noise_hides_how_the_machine_was(
    again: Callable[..., Repeated],
) -> None:
    runs = Runs({"champion": 500}, pace=lambda block: (1.0, 1.2, 1.0, 1.2, 1.0)[block % 5])
    sustained = at_rates("sustained", 9.0, 11.0, 10.0)
    repeated = again(runs, sustained, champion=CHAMPION, objective="goodput")
    assert len(runs.seen) == 20, "two runs in each of ten blocks"
    assert repeated.noise
    assert repeated.noise.drift.steady


def test_blocks_are_whole_shuffled_and_the_first_one_runs_twice(
    again: Callable[..., Repeated],
) -> None:
    runs = Runs({"slow": 300, "fast": 500, "faster": 510})
    repeated = again(runs, SLOW, FAST, FASTER)
    blocks = [[label for block, label in runs.seen if block == number] for number in range(5)]
    assert len(runs.seen) == 15, "nobody serves: nothing has to be decided"
    assert all(sorted(block) == ["fast", "faster", "faster"] for block in blocks)
    assert len(set(map(tuple, blocks))) > 1
    by_label = {one.candidate.variant.label: one for one in repeated.measurements}
    assert [repeat.block for repeat in by_label["fast"].repeats] == [0, 1, 2, 3, 4]
    assert not by_label["slow"].repeats
    assert by_label["fast"].noise == by_label["faster"].noise == repeated.noise


def test_where_runs_differ_more_than_usual_those_left_out_for_less_begin_anew_with_the_others(
    again: Callable[..., Repeated],
) -> None:
    """A tenth behind more than single runs differ usually, and less than they do here."""
    behind = measured("behind", speed=400)
    for number, (noise, is_repeated) in enumerate(((0.002, False), (0.2, True))):
        runs = Runs({"champion": 480, "fast": 500, "behind": 490}, noise)
        repeated = again(runs, FAST, behind, champion=CHAMPION, attempt=number)
        assert repeated.noise
        assert (repeated.noise.spread > 0.1) is is_repeated
        by_label = {one.candidate.variant.label: one for one in repeated.measurements}
        assert bool(by_label["behind"].repeats) is is_repeated
        blocks = len(by_label["fast"].repeats)
        fast = [block for block, label in runs.seen if label == "fast"]
        if is_repeated:
            assert len(by_label["behind"].repeats) == blocks
            assert fast == [*range(5), *range(blocks)], "the first five do not count"
        else:
            assert fast == list(range(blocks))


def test_single_runs_that_the_machine_drifted_under_widen_who_is_repeated(
    again: Callable[..., Repeated],
) -> None:
    """It became slower while one after another was measured once, and held its pace since."""
    slowly = [measured("champion", speed=700), FAST, measured("last", speed=400)]
    runs = Runs({"champion": 500, "fast": 500, "last": 590})
    repeated = again(runs, *slowly[1:], champion=slowly[0])
    assert repeated.noise
    assert repeated.noise.spread > 0.1
    assert repeated.measurements[1].repeats


def test_it_ends_at_a_difference_or_a_tie_and_else_with_the_budget(
    again: Callable[..., Repeated],
) -> None:
    def blocks(challenger: float, noise: float = 0.002, **options: Any) -> int:
        runs = Runs({"champion": 500, "fast": challenger}, noise)
        again(runs, FAST, champion=CHAMPION, **options)
        return 1 + max(block for block, _ in runs.seen)

    assert blocks(600) == 5
    assert blocks(500, attempt=1) == 5
    assert blocks(525, attempt=2, max_repeats=8) == 8, "at the very limit"
    assert blocks(550, noise=0.07, attempt=3) > 5


def test_a_challenger_that_is_faster_in_every_block_is_shown_to_be(
    again: Callable[..., Repeated],
) -> None:
    repeated = again(Runs({"champion": 500, "fast": 600}), FAST, champion=CHAMPION)
    (fast,), champion = repeated.measurements, repeated.champion
    assert champion
    claim = improvement(champion, fast)
    assert claim.verdict == "shown"
    assert claim.estimate == pytest.approx(0.2, abs=0.01)
    assert OBJECTIVE.told_apart(fast, champion).startswith("told apart by repeats (faster is shown")
    assert OBJECTIVE.told_apart(champion, fast).startswith("not told apart")
    assert OBJECTIVE.best([champion, fast]) == fast
    assert not is_void(repeated)
    once = improvement(CHAMPION, fast)
    assert once.verdict == "undecided", "repeats of another weighing, or none"
    assert "measured once" in once.why


def test_equal_ones_are_tied(again: Callable[..., Repeated]) -> None:
    repeated = again(Runs({"fast": 500, "faster": 500}), FAST, FASTER)
    assert OBJECTIVE.tied(*repeated.measurements)
    assert not OBJECTIVE.tied(FAST, FASTER)


def test_the_best_is_the_one_whose_repeats_are_the_fastest(again: Callable[..., Repeated]) -> None:
    repeated = again(Runs({"fast": 520, "faster": 500}), FAST, FASTER, SLOW)
    best = OBJECTIVE.best(repeated.measurements)
    assert best.candidate.variant.label == "fast"


def test_nothing_is_shown_where_the_machine_became_slower_and_the_next_run_tries_again(
    again: Callable[..., Repeated],
) -> None:
    runs = Runs({"champion": 500, "fast": 600}, pace=lambda block: 1.0 if block < 2 else 0.9)
    repeated = again(runs, FAST, champion=CHAMPION, max_repeats=5)
    assert repeated.champion
    claim = improvement(repeated.champion, repeated.measurements[0])
    assert claim.verdict == "undecided"
    assert "slower meanwhile" in claim.why
    assert is_void(repeated)
    anew = Runs({"champion": 500, "fast": 600})
    assert not is_void(again(anew, FAST, champion=CHAMPION, attempt=1, max_repeats=5))
    assert len(anew.seen) == 15, "nothing of the attempt before is used"


def test_more_blocks_are_run_where_few_only_seem_to_show_a_slower_machine(
    again: Callable[..., Repeated],
) -> None:
    runs = Runs({"champion": 500, "fast": 600}, pace=lambda block: 0.9 if block == 4 else 1.0)
    repeated = again(runs, FAST, champion=CHAMPION)
    assert 1 + max(block for block, _ in runs.seen) == 10
    assert repeated.champion
    assert improvement(repeated.champion, repeated.measurements[0]).verdict == "shown"


def test_a_killed_run_goes_on_after_its_last_block(again: Callable[..., Repeated]) -> None:
    killed = Runs({"fast": 500, "faster": 510})
    killed.killed_in = 3
    with pytest.raises(KeyboardInterrupt):
        again(killed, FAST, FASTER)
    rest = Runs({"fast": 500, "faster": 510})
    repeated = again(rest, FAST, FASTER)
    assert {block for block, _ in rest.seen} == {3, 4}
    assert len(repeated.measurements[0].repeats) == 5


def test_an_engine_that_fails_meanwhile_leaves_nothing_shown_and_is_tried_again(
    again: Callable[..., Repeated],
) -> None:
    def pace(block: int) -> float:
        if block == 2:
            raise Unavailable("starting llama_cpp", "the port is taken")
        return 1.0

    repeated = again(Runs({"champion": 500, "fast": 600}, pace=pace), FAST, champion=CHAMPION)
    assert repeated.failed
    assert repeated.champion
    claim = improvement(repeated.champion, repeated.measurements[0])
    assert claim.verdict == "undecided"
    assert repeated.noise
    assert "the port is taken" in repeated.noise.ended


def test_latencies_are_compared_by_their_inverse(again: Callable[..., Repeated]) -> None:
    runs = Runs({"fast": 500, "faster": 500})
    quick = {"fast": 0.05, "faster": 0.04}
    made = Runs.__call__

    def with_ttft(benchmark: CandidateBenchmark, *given: Any) -> LoadFigures:
        ttft = quick[benchmark.candidate.variant.label]
        return made(runs, benchmark, *given).model_copy(update={"ttft_p95": ttft})

    one, other = again(with_ttft, FAST, FASTER, objective="latency").measurements  # type: ignore[arg-type]
    quickest = Objective(SelectArgs(objective="latency")).best([one, other])
    assert quickest == other


def test_engines_are_started_for_every_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)
    (tmp_path / "rows").mkdir()
    rows = [json.dumps({"prompt": f"what is {n}", "completion": "one two"}) for n in range(8)]
    for split in ("train", "validation", "test"):
        (tmp_path / "rows" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    data = workspace.store.add(tmp_path / "rows", "jsonl")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.gguf").write_text("{}")
    variant = Variant(
        label="v", optimizer="made", artifact=workspace.store.add(tmp_path / "model", "gguf")
    )

    def candidate(label: str, delay: float) -> Measurement:
        served = StandInArgs(first_delay=delay)
        return measured(label).model_copy(
            update={"candidate": Candidate(label=label, variant=variant, engine=served)}
        )

    quick, slow = candidate("quick", 0.0), candidate("slow", 0.1)
    started: list[int] = []
    run_levels = CandidateBenchmark._run_levels

    def counted(benchmark: CandidateBenchmark, running: Running, *given: Any, **how: Any) -> Any:
        started.append(running.process.pid)
        return run_levels(benchmark, running, *given, **how)

    monkeypatch.setattr(CandidateBenchmark, "_run_levels", counted)
    args = WeighArgs.model_validate(
        {"engines": [StandInArgs()], "repeats": 3, "repeat_seconds": 0.05}
    )
    select = SelectArgs(concurrency=1)
    repeated = repeat([quick, slow], REFERENCE, None, data, METRICS, args, select, workspace)
    assert not repeated.failed
    one, other = repeated.measurements
    assert len(one.repeats) == len(other.repeats) == 3
    assert len(started) == len(set(started)) == 9
    # Whether it is shown depends on how busy this machine is.
    assert min(run.load.tokens_per_second for run in one.repeats) > max(
        run.load.tokens_per_second for run in other.repeats
    )
