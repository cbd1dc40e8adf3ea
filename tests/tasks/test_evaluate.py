"""Evaluation: answers and log-probabilities are right, both models are scored, a worse fine-tune is
stopped.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from weighbridge.core import progress
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, GateFailed
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import scoring
from weighbridge.tasks.answer_end import tokens_that_stop
from weighbridge.tasks.data import Message, Row, write_rows
from weighbridge.tasks.encoding import encode, load_tokenizer
from weighbridge.tasks.evaluate import EvaluateArgs, Evaluated, evaluate, gate
from weighbridge.tasks.evaluation_rows import evaluation_rows
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.hub import HubMetricArgs
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.metrics.shipped import ExactMatchArgs
from weighbridge.tasks.scoring import score_all, score_rows


def chat(number: int) -> Row:
    question = Message(role="user", content="late " * (number % 7) + f"order {number}")
    return Row(
        prompt=[question],
        completion=[Message(role="assistant", content="team " * (number % 3) + "ok")],
    )


def stored_rows(workspace: Workspace, **splits: list[Row]) -> Artifact:
    with workspace.store.scratch() as scratch:
        for split in ("train", "validation", "test"):
            write_rows(splits.get(split, []), scratch / f"{split}.jsonl")
        return workspace.store.add(scratch, "jsonl")


def two_models(workspace: Workspace, tmp_path: Path, tiny_model: Path) -> tuple[Artifact, Artifact]:
    from tests.models import make

    (tmp_path / "other").mkdir()
    make(tmp_path / "other", seed=1)
    base = workspace.store.add(tiny_model, "safetensors", adopt=False)
    return base, workspace.store.add(tmp_path / "other", "safetensors")


def test_batched_answers_equal_those_one_by_one(tiny_model: Path) -> None:
    from weighbridge.tasks import generation, hf_models

    tokenizer, model = load_tokenizer(tiny_model), hf_models.load_model(tiny_model)
    stops = tokens_that_stop(tiny_model, tokenizer)
    prompts = [row.prompt for row in encode(tokenizer, [chat(number) for number in range(20)])]

    def answers(prompts: list[list[int]], batch_size: int) -> list[str]:
        return generation.answers(
            model, tokenizer, prompts, stops=stops, max_new_tokens=12, batch_size=batch_size
        )

    with hf_models.threads(tiny_model):
        batched = answers(prompts, 8)
        alone = [answers([prompt], 1)[0] for prompt in prompts]
    assert batched == alone
    assert len(set(batched)) > 1


def test_batched_log_probabilities_equal_those_of_a_plain_forward_pass(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from weighbridge.tasks import generation, hf_models

    tokenizer, model = load_tokenizer(tiny_model), hf_models.load_model(tiny_model)
    rows = encode(tokenizer, [chat(number) for number in range(20)])
    # Small enough that a batch is cut by it, too.
    monkeypatch.setattr(generation, "LOGITS_AT_ONCE", 5 * 4 * len(tokenizer))
    with hf_models.threads(tiny_model):
        found = generation.logprobs(model, rows, batch_size=8)
    for row, logprobs in zip(rows, found, strict=True):
        with torch.inference_mode():
            everything = (
                model(torch.tensor([row.prompt + row.completion])).logits[0].log_softmax(-1)
            )
        expected = [
            everything[len(row.prompt) + at - 1, token].item()
            for at, token in enumerate(row.completion)
        ]
        assert logprobs == pytest.approx(expected, abs=1e-3)


def test_both_models_are_scored_and_every_answer_is_kept(
    workspace: Workspace, tmp_path: Path, tiny_model: Path
) -> None:
    base, other = two_models(workspace, tmp_path, tiny_model)
    data = stored_rows(
        workspace, validation=[chat(n) for n in range(9)], test=[chat(n) for n in range(9, 13)]
    )
    args = EvaluateArgs.model_validate(
        {"max_new_tokens": 6, "metrics": [{"kind": "rouge_l"}, {"kind": "nll"}]}
    )
    seen: list[progress.Step] = []
    with progress.listen(seen.append):
        result = evaluate(base, other, data, args, workspace)
    assert set(result.base) == set(result.finetuned) == set(result.test) == {"rouge_l", "nll"}
    assert result.base["nll"].value != result.finetuned["nll"].value
    assert len(result.base["nll"].per_example) == 9
    assert (seen[-1].done, seen[-1].total) == (44, 44)

    lines = [
        json.loads(line)
        for line in (result.predictions.path / "validation.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 9
    assert lines[4]["reference"] == chat(4).reference
    assert lines[4]["finetuned"]["scores"]["nll"] == result.finetuned["nll"].per_example[4]
    assert lines[4]["base"]["answer"] != lines[4]["finetuned"]["answer"]
    assert len((result.predictions.path / "test.jsonl").read_text().splitlines()) == 4


def test_limit_takes_a_sample_the_same_for_every_model(
    workspace: Workspace, tmp_path: Path, tiny_model: Path
) -> None:
    base, other = two_models(workspace, tmp_path, tiny_model)
    data = stored_rows(workspace, validation=[chat(n) for n in range(9)])
    result = evaluate(base, other, data, EvaluateArgs(limit=3, max_new_tokens=2), workspace)
    assert len(result.base["nll"].per_example) == 3
    expected = [row.id for row in evaluation_rows(data, "validation", 3)]
    assert result.base["nll"].ids == result.finetuned["exact_match"].ids == expected
    assert result.test == {}


def test_a_base_is_answered_for_once_however_many_models_are_made_of_it(
    workspace: Workspace, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.tasks import hf_models

    base, other = two_models(workspace, tmp_path, tiny_model)
    loaded: list[Path] = []
    load = hf_models.load_model
    monkeypatch.setattr(hf_models, "load_model", lambda path: loaded.append(path) or load(path))
    rows = [chat(n) for n in range(3)]
    data = stored_rows(workspace, validation=rows)
    first = evaluate(base, other, data, EvaluateArgs(max_new_tokens=2), workspace)
    assert len(loaded) == 2
    # Other training rows, another gate: nothing that an answer depends on.
    grown = stored_rows(workspace, train=[chat(9)], validation=rows)
    seen: list[progress.Step] = []
    with progress.listen(seen.append):
        again = evaluate(base, base, grown, EvaluateArgs(max_new_tokens=2, min_gain=-1), workspace)
    assert loaded[2:] == [base.path]
    assert again.base == first.base
    assert seen[-1].done == seen[-1].total
    evaluate(base, other, grown, EvaluateArgs(max_new_tokens=3), workspace)
    assert len(loaded) == 5


def test_no_validation_rows_are_refused(
    workspace: Workspace, tmp_path: Path, tiny_model: Path
) -> None:
    base, other = two_models(workspace, tmp_path, tiny_model)
    with pytest.raises(BadInput, match="no validation rows"):
        evaluate(base, other, stored_rows(workspace), EvaluateArgs(), workspace)


def figures(value: float, *, greater_is_better: bool = True) -> Score:
    return Score(
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        per_example=[],
        greater_is_better=greater_is_better,
    )


def evaluated(before: Score, after: Score) -> Evaluated:
    nothing = Artifact(digest="sha256:0", format="jsonl", size=0)
    return Evaluated(
        base={"exact_match": before}, finetuned={"exact_match": after}, predictions=nothing
    )


@pytest.mark.parametrize(
    ("before", "after", "min_gain", "greater"),
    [(0.5, 0.4, 0.0, True), (0.5, 0.6, 0.2, True), (1.0, 1.5, 0.0, False)],
)
def test_a_worse_fine_tune_is_stopped_with_both_figures(
    before: float, after: float, min_gain: float, greater: bool
) -> None:
    made = evaluated(
        figures(before, greater_is_better=greater), figures(after, greater_is_better=greater)
    )
    said = f"fine-tuned {made.finetuned['exact_match']}, base {made.base['exact_match']}:"
    with pytest.raises(GateFailed, match=re.escape(said)) as caught:
        gate(made, EvaluateArgs(min_gain=min_gain))
    assert caught.value.exit_code == 3


def test_a_figure_that_is_no_number_passes_no_gate_and_is_not_the_fine_tunes_fault() -> None:
    made = evaluated(figures(0.5), figures(float("nan")))
    with pytest.raises(GateFailed, match="the metric gives no number: fine-tuned ") as caught:
        gate(made, EvaluateArgs(min_gain=0.0))
    assert "correct the metric" in caught.value.remedy
    assert "train longer" not in caught.value.remedy


@pytest.mark.parametrize(
    ("before", "after", "min_gain", "greater"),
    [(0.5, 0.5, 0.0, True), (0.5, 0.9, 0.2, True), (1.5, 1.0, 0.0, False), (0.5, 0.45, -0.1, True)],
)
def test_a_fine_tune_that_is_good_enough_passes(
    before: float, after: float, min_gain: float, greater: bool
) -> None:
    made = evaluated(
        figures(before, greater_is_better=greater), figures(after, greater_is_better=greater)
    )
    gate(made, EvaluateArgs(min_gain=min_gain))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"metrics": [{"kind": "nll"}, {"kind": "nll"}]}, "two metrics have the label 'nll'"),
        ({"gate": "rouge_l"}, "gate 'rouge_l' is none of the metrics: exact_match, nll"),
        ({"metrics": []}, "at least 1 item"),
        ({"metrics": [{"kind": "exact_mach"}]}, "did you mean 'exact_match'"),
    ],
)
def test_arguments_that_contradict_themselves_are_refused(
    wrong: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        EvaluateArgs.model_validate(wrong)


def test_what_compares_candidates_is_no_gate() -> None:
    metrics = [{"kind": "kl"}, {"kind": "exact_match"}]
    with pytest.raises(ValidationError, match="kl compares candidates with the weights"):
        EvaluateArgs.model_validate({"metrics": metrics})
    assert EvaluateArgs.model_validate({"metrics": metrics, "gate": "exact_match"})


def test_arguments_survive_their_own_json() -> None:
    args = EvaluateArgs.model_validate({"metrics": [{"kind": "json_fields", "fields": ["a"]}]})
    assert EvaluateArgs.model_validate_json(args.model_dump_json()) == args


def test_metrics_that_need_log_probabilities_are_left_out_where_there_are_none() -> None:
    assert set(score_all(EvaluateArgs().metrics, ["a"], ["a"], None)) == {"exact_match"}


def test_scores_hold_the_ids_and_clusters_of_their_rows() -> None:
    answers = [str(number % 2) for number in range(40)]
    alone = [Row(prompt=f"{n}?", completion="1", id=str(n)) for n in range(40)]
    together = [row.model_copy(update={"cluster": str(n % 2)}) for n, row in enumerate(alone)]
    metrics = [ExactMatchArgs()]
    apart = score_rows(metrics, answers, alone, None)["exact_match"]
    clustered = score_rows(metrics, answers, together, None)["exact_match"]
    assert (apart.ids, apart.clusters) == ([str(n) for n in range(40)], [])
    assert clustered.clusters == [str(n % 2) for n in range(40)]
    # Two documents, one wholly right and one wholly wrong, say next to nothing.
    assert clustered.high - clustered.low > 2 * (apart.high - apart.low)


class Broken:
    """A plugin of somebody else's that cannot score these rows."""

    uses = "text"

    def __init__(self, row: float | None) -> None:
        self.row = row

    def score(self, args: object, predictions: list[str], references: list[str]) -> Score:
        if self.row is None:
            raise ZeroDivisionError("division\nby zero")
        rows = [1.0, self.row]
        return Score(value=sum(rows) / 2, low=0, high=1, per_example=rows)


def test_a_metric_that_raises_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "load_metric", lambda kind: Broken(None))
    with pytest.raises(BadInput, match="metric 'exact_match': ZeroDivisionError: division by zero"):
        score_all([ExactMatchArgs()], ["a"], ["a"], None)


def test_a_row_on_which_a_metric_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky:
        uses = "text"

        def score(self, _: ExactMatchArgs, answers: list[str], __: list[str]) -> Score:
            return mean_score([1 / len(answer) for answer in answers])

    monkeypatch.setattr(scoring, "load_metric", lambda kind: Picky())
    rows = [Row(prompt=name, completion="b", id=name) for name in ("v", "w", "x", "y", "z")]
    with pytest.raises(
        BadInput, match=r"'exact_match': row y \(answer \"\"\): ZeroDivisionError: division"
    ):
        score_rows([ExactMatchArgs()], ["a", "b", "c", "", "d"], rows, None)


SCRIPT = """
import datasets
import evaluate


class Inverse(evaluate.Metric):
    def _info(self):
        texts = {name: datasets.Value("string") for name in ("predictions", "references")}
        features = datasets.Features(texts)
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references, most=None):
        if most is not None:
            raise ValueError(f"most is {most}")
        return {"inverse": sum(1 / int(text) for text in predictions) / len(predictions)}
"""


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({}, r"metric 'inverse': row y \(answer \"four\"\): ValueError: invalid literal for int"),
        # Whatever is answered: it is no row's doing.
        ({"most": 3}, "metric 'inverse': ValueError: most is 3; check its options"),
    ],
)
def test_of_a_metric_of_the_hub_too_the_row_it_raises_on_is_named(
    tmp_path: Path, option: dict[str, int], said: str
) -> None:
    (script := tmp_path / "inverse.py").write_text(SCRIPT)
    args = HubMetricArgs(kind="hub", name=str(script), compute=option)
    rows = [Row(prompt=name, completion="b", id=name) for name in ("v", "w", "x", "y", "z")]
    with pytest.raises(BadInput, match=said):
        score_rows([args], ["1", "2", "3", "four", "5"], rows, None)


@pytest.mark.parametrize(
    ("returned", "said"),
    [(0.5, "it returned float, and no"), (mean_score([1.0]), "it returned 1 scores for 2 rows")],
)
def test_what_is_no_score_of_the_rows_is_refused(
    returned: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        uses = "text"

        def score(self, *_: Any) -> Any:
            return returned

    monkeypatch.setattr(scoring, "load_metric", lambda kind: Wrong())
    with pytest.raises(BadInput, match=said):
        score_all([ExactMatchArgs()], ["a", "b"], ["a", "b"], None)


def test_a_row_without_a_number_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scoring, "load_metric", lambda kind: Broken(float("nan")))
    rows = [Row(prompt="a", completion="b", id=name, cluster=name) for name in ("x", "y")]
    score = score_rows([ExactMatchArgs()], ["a", "b"], rows, None)["exact_match"]
    assert "metric exact_match gave no number for 1 of 2 rows, the first with id y" in caplog.text
    assert math.isnan(score.value)
