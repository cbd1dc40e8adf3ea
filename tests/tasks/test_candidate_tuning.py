"""Options of an engine that are left open: tried before it is measured, or taken from the load and
the rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.engine import StandInArgs
from tests.tasks.doubling import METRICS, args
from tests.tasks.made import load
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running
from weighbridge.serving.engines import llama_cpp
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks import candidate_benchmark
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.context_room import context_for, longest_row
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.weigh import weigh

pytestmark = pytest.mark.usefixtures("stand_in")


def test_open_options_are_measured_and_the_best_taken(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    (measured,) = weigh(
        [variant()], questions, METRICS, args(StandInArgs(), tune=True), workspace
    ).measurements
    assert isinstance(measured.candidate.engine, StandInArgs)
    assert measured.candidate.engine.threads == 2
    assert [note["threads"] for note in measured.tuning] == [1, 2, 8]


@pytest.mark.parametrize(
    ("speeds", "first_tokens", "winner", "starts"),
    [
        ({1: 90, 2: 100, 8: 50}, {1: 0.1, 2: 0.2}, 2, [1, 2, 8, 2]),
        ({1: 98, 2: 100, 8: 50}, {1: 0.1, 2: 0.2}, 1, [1, 2, 8, 1]),
        ({1: 0, 2: 60, 8: 100}, {1: 0.0, 2: 0.2}, 8, [1, 2, 8]),
        ({1: 0, 2: 60, 8: 0}, {1: 0.0, 2: 0.2}, 2, [1, 2, 8, 2]),
    ],
    ids=[
        "the fastest",
        "of two alike the sooner first token",
        "the last one is started once",
        "none that failed",
    ],
)
def test_every_setting_is_started_once_and_the_best_is_measured(
    speeds: dict[int, float],
    first_tokens: dict[int, float],
    winner: int,
    starts: list[int],
    variant: Callable[..., Variant],
    questions: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []
    serve, run_levels = CandidateBenchmark._serve, CandidateBenchmark._run_levels

    def counted(scale: CandidateBenchmark, options: StandInArgs) -> Any:
        started.append(options.threads or 0)
        return serve(scale, options)

    def run(
        scale: CandidateBenchmark, running: Running, *given: Any, tuning: bool = False
    ) -> list[LoadFigures]:
        if not tuning:
            return run_levels(scale, running, *given)
        threads = started[-1]
        if not speeds[threads]:
            raise Unavailable("measuring", "it died")
        return [load(speeds[threads], ttft=first_tokens.get(threads, 0.3))]

    monkeypatch.setattr(CandidateBenchmark, "_serve", counted)
    monkeypatch.setattr(CandidateBenchmark, "_run_levels", run)
    (measured,) = weigh(
        [variant()], questions, METRICS, args(StandInArgs(), tune=True), workspace
    ).measurements
    assert not measured.failure
    assert isinstance(measured.candidate.engine, StandInArgs)
    assert (measured.candidate.engine.threads, started) == (winner, starts)
    assert [note["threads"] for note in measured.tuning] == [1, 2, 8]


def test_slots_and_context_come_from_the_load_and_the_rows(
    questions: Artifact, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_text("")
    variant = Variant(label="q", optimizer="made", artifact=workspace.store.add(folder, "gguf"))
    monkeypatch.setattr(llama_cpp, "trained_context", lambda weights: 32768)
    monkeypatch.setattr(candidate_benchmark, "longest_row", lambda data, tokenizer, answer: 900)

    def sized(engine: LlamaCppArgs, **options: Any) -> tuple[object, ...]:
        weigh_args = args(engine, concurrency=[1, 4], **options)  # type: ignore[arg-type]
        candidate = Candidate(label="c", variant=variant, engine=engine)
        benchmark = CandidateBenchmark(candidate, questions, METRICS, weigh_args, "", workspace)
        found = benchmark.sized()
        assert isinstance(found, LlamaCppArgs)
        return found.parallel, found.ctx_size, found.kv_unified

    assert sized(LlamaCppArgs()) == (4, 4 * 2048, False)
    assert sized(LlamaCppArgs(), context=512) == (4, 4 * 512, False)
    assert sized(LlamaCppArgs(parallel=2)) == (2, 2 * 2048, False)
    assert sized(LlamaCppArgs(ctx_size=6000)) == (4, 6000, True), "one pool, as before"


def test_the_longest_row_is_counted_in_tokens_with_the_longest_answer(
    questions: Artifact, tiny_model: Path
) -> None:
    assert longest_row(questions, tiny_model, 128) > 128 + 4
    assert longest_row(questions, tiny_model, 1000) - longest_row(questions, tiny_model, 500) == 500
    assert (context_for(10), context_for(600)) == (1024, 1280)
