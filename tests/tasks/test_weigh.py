"""Weigh: every candidate through its own engine, kept by itself, and none that fails stops the
others.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from tests.tasks.made import load
from weighbridge.core import machine, plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running
from weighbridge.serving.engines import llama_cpp
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks import candidate_benchmark
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.context_room import context_for, longest_row
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.harness import lm_eval
from weighbridge.tasks.measurement import Candidate, Measurement, Variant
from weighbridge.tasks.metrics import judge
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.limits import Limits
from weighbridge.tasks.weigh import candidates, check, is_whole, weigh
from weighbridge.tasks.weigh_args import WeighArgs

METRICS = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]})
QUESTIONS = {f"what is {n} doubled": f"it is {2 * n}" for n in range(40)}


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)


@pytest.fixture
def data(tmp_path: Path, workspace: Workspace) -> Artifact:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [
        json.dumps(
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
        for question, answer in QUESTIONS.items()
    ]
    for split, part in {"train": rows[:20], "validation": rows[20:30], "test": rows[30:]}.items():
        (folder / f"{split}.jsonl").write_text("\n".join(part) + "\n")
    return workspace.store.add(folder, "jsonl")


@pytest.fixture
def variant(tmp_path: Path, workspace: Workspace) -> Callable[..., Variant]:
    """A variant that knows the answers to so many of the questions."""

    def make(label: str = "whole", known: int = len(QUESTIONS)) -> Variant:
        folder = tmp_path / label
        folder.mkdir()
        (folder / "model.gguf").write_text(json.dumps(dict(list(QUESTIONS.items())[:known])))
        return Variant(label=label, optimizer="made", artifact=workspace.store.add(folder, "gguf"))

    return make


def args(*engines: StandInArgs, **options: Any) -> WeighArgs:
    quick = {"concurrency": [1, 2], "requests": 8, "seconds": 0.0, "tune": False, **options}
    return WeighArgs.model_validate({"engines": list(engines) or [StandInArgs(threads=2)], **quick})


def test_a_candidate_is_an_engine_with_a_variant_it_serves(
    variant: Callable[..., Variant], tmp_path: Path
) -> None:
    gguf = variant()
    weights = gguf.model_copy(
        update={
            "label": "bf16",
            "artifact": gguf.artifact.model_copy(update={"format": "safetensors"}),
        }
    )
    found = candidates([gguf, weights], [StandInArgs(), LlamaCppArgs(), LlamaCppArgs(threads=1)])
    assert [candidate.label for candidate in found] == [
        "stand_in/whole",
        "llama_cpp/whole",
        "llama_cpp(threads=1)/whole",
    ]
    with pytest.raises(BadInput, match="none of stand_in serves safetensors"):
        candidates([weights], [StandInArgs()])


def test_quality_is_what_the_engine_answers_on_both_splits(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    (measured,) = weigh([variant(known=27)], data, METRICS, args(), workspace).measurements
    assert measured.scores["exact_match"].value == pytest.approx(0.7)
    assert measured.test_scores["exact_match"].value == 0
    assert measured.predictions
    lines = (measured.predictions.path / "validation.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert (first["answer"], first["reference"], first["scores"]) == (
        "it is 40",
        "it is 40",
        {"exact_match": 1.0},
    )
    assert (last["answer"], last["scores"]) == ("one two three four", {"exact_match": 0.0})


def test_faults_are_counted_of_the_answers_that_are_there_already(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    metrics = METRICS.model_copy(update={"max_new_tokens": 3})
    stand_in = StandInArgs(threads=2, default="I'm sorry, I cannot help")
    (measured,) = weigh([variant(known=27)], data, metrics, args(stand_in), workspace).measurements
    shares = {
        split: {fault: score.value for fault, score in counted.items()}
        for split, counted in measured.faults.items()
    }
    assert shares["validation"] == {"failed": 0, "empty": 0, "truncated": 0.3, "refused": 0.3}
    assert shares["test"] == {"failed": 0, "empty": 0, "truncated": 1, "refused": 1}
    assert "references are not JSON" in measured.uncounted["malformed"]
    assert measured.predictions
    lines = (measured.predictions.path / "validation.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["faults"] == ["truncated", "refused"]


def test_every_figure_is_there(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    (measured,) = weigh(
        [variant()], data, METRICS, args(price_per_hour=3.6), workspace
    ).measurements
    assert [figures.concurrency for figures in measured.load] == [1, 2]
    assert all(figures.tokens_per_second > 0 and not figures.errors for figures in measured.load)
    assert all(figures.warm_up_requests >= figures.concurrency for figures in measured.load)
    # The kernel counts in hundredths of a second: so few requests may take none.
    assert all(figures.cpu_seconds is not None for figures in measured.load)
    assert measured.load_seconds > 0
    assert measured.peak_memory > 1 << 20
    highest = measured.load[-1]
    assert measured.cost_per_million_tokens == pytest.approx(1000 / highest.tokens_per_second)
    assert measured.cost_per_thousand_requests == pytest.approx(1 / highest.requests_per_second)
    assert measured.machine["cores"] == str(machine.cores())


def test_open_options_are_measured_and_the_best_taken(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    (measured,) = weigh(
        [variant()], data, METRICS, args(StandInArgs(), tune=True), workspace
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
    data: Artifact,
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
        [variant()], data, METRICS, args(StandInArgs(), tune=True), workspace
    ).measurements
    assert not measured.failure
    assert isinstance(measured.candidate.engine, StandInArgs)
    assert (measured.candidate.engine.threads, started) == (winner, starts)
    assert [note["threads"] for note in measured.tuning] == [1, 2, 8]


def test_slots_and_context_come_from_the_load_and_the_rows(
    data: Artifact, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        benchmark = CandidateBenchmark(candidate, data, METRICS, weigh_args, "", workspace)
        found = benchmark.sized()
        assert isinstance(found, LlamaCppArgs)
        return found.parallel, found.ctx_size, found.kv_unified

    assert sized(LlamaCppArgs()) == (4, 4 * 2048, False)
    assert sized(LlamaCppArgs(), context=512) == (4, 4 * 512, False)
    assert sized(LlamaCppArgs(parallel=2)) == (2, 2 * 2048, False)
    assert sized(LlamaCppArgs(ctx_size=6000)) == (4, 6000, True), "one pool, as before"


def test_the_longest_row_is_counted_in_tokens_with_the_longest_answer(
    data: Artifact, tiny_model: Path
) -> None:
    assert longest_row(data, tiny_model, 128) > 128 + 4
    assert longest_row(data, tiny_model, 1000) - longest_row(data, tiny_model, 500) == 500
    assert (context_for(10), context_for(600)) == (1024, 1280)


def test_a_measurement_is_kept_and_the_price_is_no_part_of_it(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    candidate = variant()
    (first,) = weigh([candidate], data, METRICS, args(price_per_hour=1), workspace).measurements
    (again,) = weigh([candidate], data, METRICS, args(price_per_hour=2), workspace).measurements
    assert first.cost_per_million_tokens
    assert again.cost_per_million_tokens == pytest.approx(2 * first.cost_per_million_tokens)
    assert _figures(again) == _figures(first)


def test_one_more_candidate_does_not_measure_the_others_again(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    one, two = variant("one"), variant("two", known=30)
    (alone,) = weigh([one], data, METRICS, args(), workspace).measurements
    champion = Candidate(label="champion", variant=one, engine=StandInArgs(threads=2))
    both = weigh([one, two], data, METRICS, args(), workspace, also=[champion]).measurements
    assert [measured.candidate.label for measured in both] == [
        "stand_in/one",
        "stand_in/two",
        "champion",
    ]
    assert _figures(both[0]) == _figures(alone) == _figures(both[2])


def test_another_machine_measures_again(
    variant: Callable[..., Variant],
    data: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidate = variant()
    (first,) = weigh([candidate], data, METRICS, args(), workspace).measurements
    monkeypatch.setattr(machine, "describe", lambda: {"cores": "96"})
    (again,) = weigh([candidate], data, METRICS, args(), workspace).measurements
    assert _figures(again) != _figures(first)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (StandInArgs(die_loading="not enough memory"), "not enough memory"),
        (StandInArgs(threads=2, die_after=12), "dies as it was told"),
        (StandInArgs(threads=2, load_seconds=20, start_timeout=0.5), "not ready within"),
    ],
)
def test_a_candidate_that_fails_says_why_and_the_rest_go_on(
    broken: StandInArgs,
    reason: str,
    variant: Callable[..., Variant],
    data: Artifact,
    workspace: Workspace,
) -> None:
    whole, failed = weigh(
        [variant()], data, METRICS, args(StandInArgs(threads=2), broken), workspace
    ).measurements
    assert not whole.failure
    assert reason in failed.failure
    assert (failed.scores, failed.load, failed.predictions) == ({}, [], None)


def test_a_failure_is_not_kept(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    candidate = variant()
    with pytest.raises(Unavailable, match="no candidate could be measured"):
        weigh([candidate], data, METRICS, args(StandInArgs(die_loading="for now")), workspace)
    assert not list((workspace.settings.home / "stages" / "weigh.candidate").glob("*.json"))


def test_a_question_the_engine_refuses_is_answered_wrongly(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    # Requests 5, 10, … fail: some under load, and some of the twenty that quality is judged by.
    measured, _ = weigh(
        [variant("flawed"), variant("other", known=3)],
        data,
        METRICS,
        args(StandInArgs(error_every=5)),
        workspace,
    ).measurements
    assert measured.load[0].errors > 0
    assert 0.6 <= measured.scores["exact_match"].value <= 0.8
    assert measured.predictions
    lines = (measured.predictions.path / "test.jsonl").read_text().splitlines()
    problems = [json.loads(line).get("problem") for line in lines]
    assert any("HTTP 500" in problem for problem in problems if problem)


def test_metrics_an_engine_cannot_serve_are_left_out(
    variant: Callable[..., Variant],
    data: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "weighbridge.tasks.candidate_likelihoods.load_tokenizer", lambda model: None
    )
    monkeypatch.setattr(
        "weighbridge.tasks.candidate_likelihoods.encode",
        lambda tokenizer, rows: [_Encoded() for _ in rows],
    )
    metrics = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}, {"kind": "nll"}]})
    (measured,) = weigh([variant()], data, metrics, args(), workspace).measurements
    assert set(measured.scores) == {"exact_match"}
    assert measured.left_out == [
        "its engine tells no log-probabilities: without nll and select.max_nll_increase"
    ]


def test_a_judge_that_does_not_answer_leaves_a_measurement_that_is_tried_again(
    variant: Callable[..., Variant],
    data: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge, "WAIT", 0.0)
    asked = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m"}
    metrics = EvaluateArgs.model_validate(
        {"metrics": [{"kind": "exact_match"}, asked], "lm_eval": {"tasks": ["doubled"]}}
    )
    double = mean_score([1.0, 0.0])
    monkeypatch.setattr(lm_eval, "harness_scores", lambda *_: {"doubled.exact_match": double})
    (measured,) = weigh([variant()], data, metrics, args(), workspace).measurements
    assert set(measured.scores) == {"exact_match", "doubled.exact_match"}
    assert "asking the judge" in measured.uncounted["judge"]
    assert any(said.startswith("without judge: asking the judge") for said in measured.left_out)
    assert not is_whole(measured, metrics)
    assert is_whole(measured, METRICS)
    assert measured.predictions
    assert "{answer}" in (measured.predictions.path / "judge.prompt.txt").read_text()
    standing = Limits(SelectArgs(metric="judge")).standing(measured, "validation", {})
    assert standing.verdict == "undecided"


def test_an_engine_that_counts_no_tokens_is_measured_by_its_pieces_and_that_is_said(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    silent = args(StandInArgs(threads=2, no_counts=True))
    (measured,) = weigh([variant()], data, METRICS, silent, workspace).measurements
    assert not measured.failure
    assert all(figures.uncounted and figures.tokens_per_second > 0 for figures in measured.load)
    (said,) = measured.left_out
    assert said.startswith("its engine counts no tokens: tokens per second")


class _Encoded:
    prompt: tuple[int, ...] = (1,)
    completion: tuple[int, ...] = (2,)


def _figures(measurement: Measurement) -> dict[str, Any]:
    return measurement.model_dump(
        include={"scores", "load", "load_seconds", "peak_memory", "predictions"}
    )


def test_an_engine_whose_device_is_missing_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted = WeighArgs.model_validate(
        {"engines": [{"kind": "llama_cpp"}, {"kind": "vllm", "device": "cuda"}]}
    )
    with pytest.raises(Unavailable, match="starting vllm: there is no NVIDIA device here"):
        check(wanted)


def test_the_highest_rate_that_keeps_the_limits_is_looked_for_where_a_recipe_asks(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    rates = args(
        arrivals="poisson",
        ttft_limit=1.0,
        limit_percentile=0.5,
        rate_requests=20,
        most_rates=2,
        price_per_hour=3.6,
    )
    (measured,) = weigh([variant()], data, METRICS, rates, workspace).measurements
    assert not measured.failure
    assert 1 <= len(measured.rates) <= 2
    assert measured.goodput in measured.rates
    assert measured.sustained
    # At the goodput, not at the most that a concurrency had.
    assert measured.cost_per_thousand_requests == pytest.approx(1 / measured.sustained)


def test_every_candidate_is_loaded_with_the_same_prompts_in_the_same_order(
    variant: Callable[..., Variant],
    data: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[object]] = []
    run_levels = CandidateBenchmark._run_levels

    def run(*given: Any, **options: Any) -> Any:
        asked.append([payload["messages"] for payload in given[2]])
        return run_levels(*given, **options)

    monkeypatch.setattr(CandidateBenchmark, "_run_levels", run)
    two = args(StandInArgs(threads=2), StandInArgs(threads=2, default="another"))
    weigh([variant()], data, METRICS, two, workspace)
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert len(asked[0]) > 8


def test_costs_are_of_answers_in_time_at_the_concurrency_that_decides(
    variant: Callable[..., Variant], data: Artifact, workspace: Workspace
) -> None:
    late = args(StandInArgs(threads=2, first_delay=0.05), ttft_limit=0.001, price_per_hour=3.6)
    (measured,) = weigh([variant()], data, METRICS, late, workspace).measurements
    assert measured.cost_per_million_tokens is None, "nothing was in time"
    kept = args(StandInArgs(threads=2, first_delay=0.05), ttft_limit=60, price_per_hour=3.6)
    (measured,) = weigh(
        [variant("b")], data, METRICS, kept, workspace, aim=Aim(concurrency=1)
    ).measurements
    assert measured.cost_per_thousand_requests == pytest.approx(
        1 / measured.load[0].requests_per_second
    )


def test_rates_need_a_limit() -> None:
    with pytest.raises(ValidationError, match="give ttft_limit"):
        args(arrivals="poisson")


def test_a_percentile_that_the_requests_of_a_rate_cannot_carry_is_refused() -> None:
    rates = {"arrivals": "poisson", "ttft_limit": 1.0, "limit_percentile": 0.99}
    with pytest.raises(ValidationError, match=r"takes 459 .* at most 256 count; give 718"):
        args(**rates, rate_requests=400)
    assert args(**rates, rate_requests=718)
