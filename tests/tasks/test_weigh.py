"""Weigh: every candidate through its own engine, kept by itself, and none that fails stops the
others.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.engine import StandInArgs
from tests.tasks.doubling import METRICS, args
from weighbridge.core import machine
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.harness import lm_eval
from weighbridge.tasks.measurement import Candidate, Measurement, Variant
from weighbridge.tasks.metrics import judge
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.limits import Limits
from weighbridge.tasks.weigh import candidates, is_whole, weigh

pytestmark = pytest.mark.usefixtures("stand_in")


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
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    (measured,) = weigh([variant(known=27)], questions, METRICS, args(), workspace).measurements
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
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    metrics = METRICS.model_copy(update={"max_new_tokens": 3})
    stand_in = StandInArgs(threads=2, default="I'm sorry, I cannot help")
    (measured,) = weigh(
        [variant(known=27)], questions, metrics, args(stand_in), workspace
    ).measurements
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
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    (measured,) = weigh(
        [variant()], questions, METRICS, args(price_per_hour=3.6), workspace
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


def test_a_measurement_is_kept_and_the_price_is_no_part_of_it(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    candidate = variant()
    (first,) = weigh(
        [candidate], questions, METRICS, args(price_per_hour=1), workspace
    ).measurements
    (again,) = weigh(
        [candidate], questions, METRICS, args(price_per_hour=2), workspace
    ).measurements
    assert first.cost_per_million_tokens
    assert again.cost_per_million_tokens == pytest.approx(2 * first.cost_per_million_tokens)
    assert _figures(again) == _figures(first)


def test_one_more_candidate_does_not_measure_the_others_again(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    one, two = variant("one"), variant("two", known=30)
    (alone,) = weigh([one], questions, METRICS, args(), workspace).measurements
    champion = Candidate(label="champion", variant=one, engine=StandInArgs(threads=2))
    both = weigh([one, two], questions, METRICS, args(), workspace, also=[champion]).measurements
    assert [measured.candidate.label for measured in both] == [
        "stand_in/one",
        "stand_in/two",
        "champion",
    ]
    assert _figures(both[0]) == _figures(alone) == _figures(both[2])


def test_another_machine_measures_again(
    variant: Callable[..., Variant],
    questions: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidate = variant()
    (first,) = weigh([candidate], questions, METRICS, args(), workspace).measurements
    monkeypatch.setattr(machine, "describe", lambda: {"cores": "96"})
    (again,) = weigh([candidate], questions, METRICS, args(), workspace).measurements
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
    questions: Artifact,
    workspace: Workspace,
) -> None:
    whole, failed = weigh(
        [variant()], questions, METRICS, args(StandInArgs(threads=2), broken), workspace
    ).measurements
    assert not whole.failure
    assert reason in failed.failure
    assert (failed.scores, failed.load, failed.predictions) == ({}, [], None)


def test_a_failure_is_not_kept(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    candidate = variant()
    with pytest.raises(Unavailable, match="no candidate could be measured"):
        weigh([candidate], questions, METRICS, args(StandInArgs(die_loading="for now")), workspace)
    assert not list((workspace.settings.home / "stages" / "weigh.candidate").glob("*.json"))


def test_a_question_the_engine_refuses_is_answered_wrongly(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    # Requests 5, 10, … fail: some under load, and some of the twenty that quality is judged by.
    measured, _ = weigh(
        [variant("flawed"), variant("other", known=3)],
        questions,
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
    questions: Artifact,
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
    (measured,) = weigh([variant()], questions, metrics, args(), workspace).measurements
    assert set(measured.scores) == {"exact_match"}
    assert measured.left_out == [
        "its engine tells no log-probabilities: without nll and select.max_nll_increase"
    ]


def test_a_judge_that_does_not_answer_leaves_a_measurement_that_is_tried_again(
    variant: Callable[..., Variant],
    questions: Artifact,
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
    (measured,) = weigh([variant()], questions, metrics, args(), workspace).measurements
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
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    silent = args(StandInArgs(threads=2, no_counts=True))
    (measured,) = weigh([variant()], questions, METRICS, silent, workspace).measurements
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


def test_the_highest_rate_that_keeps_the_limits_is_looked_for_where_a_recipe_asks(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    rates = args(
        arrivals="poisson",
        ttft_limit=1.0,
        limit_percentile=0.5,
        rate_requests=20,
        most_rates=2,
        price_per_hour=3.6,
    )
    (measured,) = weigh([variant()], questions, METRICS, rates, workspace).measurements
    assert not measured.failure
    assert 1 <= len(measured.rates) <= 2
    assert measured.goodput in measured.rates
    assert measured.sustained
    # At the goodput, not at the most that a concurrency had.
    assert measured.cost_per_thousand_requests == pytest.approx(1 / measured.sustained)


def test_every_candidate_is_loaded_with_the_same_prompts_in_the_same_order(
    variant: Callable[..., Variant],
    questions: Artifact,
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
    weigh([variant()], questions, METRICS, two, workspace)
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert len(asked[0]) > 8


def test_costs_are_of_answers_in_time_at_the_concurrency_that_decides(
    variant: Callable[..., Variant], questions: Artifact, workspace: Workspace
) -> None:
    late = args(StandInArgs(threads=2, first_delay=0.05), ttft_limit=0.001, price_per_hour=3.6)
    (measured,) = weigh([variant()], questions, METRICS, late, workspace).measurements
    assert measured.cost_per_million_tokens is None, "nothing was in time"
    kept = args(StandInArgs(threads=2, first_delay=0.05), ttft_limit=60, price_per_hour=3.6)
    (measured,) = weigh(
        [variant("b")], questions, METRICS, kept, workspace, aim=Aim(concurrency=1)
    ).measurements
    assert measured.cost_per_thousand_requests == pytest.approx(
        1 / measured.load[0].requests_per_second
    )
