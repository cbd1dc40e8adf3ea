"""The shipped metrics: each as a plugin, and as a module that Hugging Face `evaluate` loads by its
path.
"""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.metrics.base import Score, load_metric
from weighbridge.tasks.metrics.shipped import NllArgs
from weighbridge.tasks.scoring import row_scores
from weighbridge.tasks.statistics.rows import follows_from_rows
from weighbridge.tasks.weigh import check_metrics

MODULES = Path(__file__).parents[3] / "tasks" / "metrics" / "modules"


def score(kind: str, predictions: list[Any], references: list[str], **options: Any) -> Score:
    metric = load_metric(kind)
    result: Score = metric.score(
        metric.Args.model_validate({"kind": kind, **options}), predictions, references
    )
    return result


def rows(kind: str, prediction: Any, reference: str, **options: Any) -> float:
    return score(kind, [prediction], [reference], **options).per_example[0]


def test_exact_match_is_the_share_of_equal_answers() -> None:
    result = score("exact_match", ["yes", " no\n", "maybe", ""], ["yes", "no", "no", "no"])
    assert (result.value, result.per_example) == (0.5, [1.0, 1.0, 0.0, 0.0])
    assert 0 < result.low < 0.5 < result.high < 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.0),
        ({"ignore_case": True}, 0.0),
        ({"ignore_case": True, "ignore_punctuation": True}, 0.0),
        ({"ignore_case": True, "ignore_punctuation": True, "ignore_numbers": True}, 1.0),
        ({"regexes_to_ignore": [r"[\d!]", "(?i)yes"]}, 1.0),
    ],
)
def test_exact_match_ignores_what_it_is_told_to(options: dict[str, Any], expected: float) -> None:
    assert rows("exact_match", "YES!", "yes2", **options) == expected


def test_exact_match_counts_white_space_when_asked() -> None:
    assert rows("exact_match", "yes ", "yes", strip=False) == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', 1.0),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": 1, "b": 2, "c": 3, "d": 4}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": {"x": 1, "y": 2}}', '{"a": {"x": 1, "y": 3}}', 0.5),
        ('{"a": [1, 2, 3, 4]}', '{"a": [1, 2, 3]}', 0.75),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ('{"a": null}', '{"b": null}', 0.0),
        ("{}", "{}", 1.0),
        ("[]", "{}", 0.0),
        ('"a"', '"a"', 1.0),
        ("not json", "not json", 0.0),
        ("", "", 0.0),
        ('{"a": NaN}', '{"a": NaN}', 0.0),
        ('{"a": 1} trailing', '{"a": 1}', 0.0),
        # Deeper than what takes it apart can go, and not too deep to be parsed.
        ("[" * 900 + "]" * 900, "[[]]", 0.0),
    ],
)
def test_json_fields_is_the_share_of_right_fields(
    prediction: str, reference: str, expected: float
) -> None:
    assert rows("json_fields", prediction, reference) == expected


def test_json_fields_looks_at_the_named_fields_alone() -> None:
    said, wanted = '{"a": 1, "b": {"c": 2, "d": 3}}', '{"a": 9, "b": {"c": 2, "d": 4}}'
    assert rows("json_fields", said, wanted, fields=["b"]) == 0.5
    assert rows("json_fields", said, wanted, fields=["b.c"]) == 1.0


@given(st.text(), st.text())
def test_json_fields_survives_any_text(prediction: str, reference: str) -> None:
    from weighbridge.tasks.metrics.rows.json_fields import share

    assert 0.0 <= share(prediction, reference) <= 1.0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # Common: the cat on mat: 4 of 5 words and 4 of 6.
    assert rows("rouge_l", "the cat on red mat", "the cat sat on the mat") == pytest.approx(8 / 11)


def test_rouge_l_reads_other_scripts_when_split_at_white_space() -> None:
    assert rows("rouge_l", "вода и хлеб", "вода и соль") == 0.0
    assert rows("rouge_l", "вода и хлеб", "вода и соль", tokenizer="whitespace") == pytest.approx(
        2 / 3
    )


def test_bleu_equals_sacrebleus_own() -> None:
    import sacrebleu

    said = ["the cat sat on the mat", "there is a dog in the garden today"]
    wanted = ["the cat sat on a mat", "there is a dog in the garden now"]
    result = score("bleu", said, wanted)
    assert result.value == pytest.approx(sacrebleu.corpus_bleu(said, [wanted]).score)
    assert 0 <= result.low <= result.value <= result.high <= 100
    assert len(result.per_example) == 2


def test_what_bleu_is_made_of_gives_it_again() -> None:
    """Of all rows, and of any part of them, as sacrebleu computes it."""
    import numpy as np
    import sacrebleu

    from weighbridge.tasks.statistics.resampling import BLEU

    said = ["the cat sat on the mat", "no dog at all", "there is a dog in the garden", "a b", "x"]
    wanted = ["the cat sat on a mat", "a dog", "there is a dog in the garden now, or", "b a", "y"]
    statistics = np.array(score("bleu", said, wanted).statistics)
    for part in ([0, 1, 2, 3, 4], [0, 1], [1, 3], [2, 2, 4], [3], [4]):
        texts = [[side[number] for number in part] for side in (said, wanted)]
        expected = sacrebleu.corpus_bleu(texts[0], [texts[1]]).score
        assert BLEU.value(statistics[part].sum(axis=0)) == pytest.approx(expected)


def test_ratios_and_corpus_figures_follow_from_their_rows() -> None:
    logprobs = [[-1.0, -2.0, -3.0], [-10.0], [-0.5, -0.1]]
    for report in ("nll", "perplexity"):
        result = score("nll", logprobs, ["a b c", "d", "e f"], report=report)
        assert result.weights == [3, 1, 2]
        assert follows_from_rows(result)
    assert follows_from_rows(score("bleu", ["a b c d e", "x y"], ["a b c d f", "x z"]))
    assert not follows_from_rows(result.model_copy(update={"weights": []}))


def test_nll_weighs_every_token_alike() -> None:
    result = score("nll", [[-1.0, -2.0, -3.0], [-10.0]], ["a b c", "d"])
    assert (result.value, result.per_example) == (4.0, [2.0, 10.0])
    assert not result.greater_is_better
    assert result.low <= result.value <= result.high


def test_perplexity_is_the_exponential_of_nll() -> None:
    result = score(
        "nll", [[math.log(0.25)] * 3, [math.log(0.25)]], ["a b c", "d"], report="perplexity"
    )
    assert result.value == pytest.approx(4.0)
    assert NllArgs(report="perplexity").label() == "perplexity"


@pytest.mark.parametrize("name", ["exact_match", "json_fields", "rouge_l", "bleu", "nll"])
def test_every_module_is_an_evaluate_metric_that_loads_by_path(name: str, tmp_path: Path) -> None:
    import evaluate

    metric = evaluate.load(
        str(MODULES / f"{name}.py"), keep_in_memory=True, cache_dir=str(tmp_path)
    )
    assert isinstance(metric, evaluate.Metric)
    prediction: Any = [-0.5, -1.5] if name == "nll" else '{"a": 1}'
    result = metric.compute(predictions=[prediction], references=['{"a": 1}'])
    assert result is not None
    assert name in result


def test_a_metric_is_loaded_by_its_path(tmp_path: Path) -> None:
    result = score(
        "hub",
        ["a", "b"],
        ["a", "c"],
        name=str(MODULES / "exact_match.py"),
        compute={"strip": False},
    )
    assert (result.value, result.per_example) == (0.5, [1.0, 0.0])
    assert result.low < 0.5 < result.high


def test_a_metric_without_scores_of_its_rows_has_no_width() -> None:
    result = score("hub", ["a", "b"], ["a", "c"], name=str(MODULES / "exact_match.py"), each=False)
    assert (result.low, result.value, result.high, result.per_example) == (0.5, 0.5, 0.5, [])


def test_a_list_as_figure_is_the_scores_of_the_rows() -> None:
    result = score(
        "hub", ["a", "b"], ["a", "c"], name=str(MODULES / "exact_match.py"), key="per_example"
    )
    assert (result.value, result.per_example) == (0.5, [1.0, 0.0])


def test_a_figure_that_is_not_in_the_result_is_refused() -> None:
    with pytest.raises(BadInput, match="set `key` to one of: exact_match, per_example"):
        score("hub", ["a"], ["a"], name=str(MODULES / "exact_match.py"), key="accuracy")


def test_a_metric_that_is_nowhere_is_said_in_one_line() -> None:
    with pytest.raises((BadInput, Unavailable), match="loading metric 'no/such_metric'") as caught:
        score("hub", ["a"], ["a"], name="no/such_metric")
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_nowhere_is_told_before_anything_is_made(tmp_path: Path) -> None:
    metrics = EvaluateArgs.model_validate(
        {"metrics": [{"kind": "nll"}, {"kind": "hub", "name": str(tmp_path / "nowhere.py")}]}
    )
    with pytest.raises((BadInput, Unavailable), match=r"loading metric '.*nowhere\.py'"):
        check_metrics(metrics)


@pytest.mark.parametrize("kind", ["exact_match", "json_fields", "rouge_l", "bleu", "nll", "hub"])
def test_unknown_options_are_refused(kind: str) -> None:
    with pytest.raises(ValidationError):
        load_metric(kind).Args.model_validate({"kind": kind, "name": "x", "no_such_option": 1})


@pytest.mark.parametrize("kind", ["exact_match", "json_fields", "rouge_l", "bleu"])
def test_rows_alone_are_scored_as_with_the_summary(kind: str) -> None:
    predictions = ['{"a": 1}', "the cat sat on the mat", "no"]
    references = ['{"a": 1, "b": 2}', "the cat lay on the mat", "yes"]
    args = load_metric(kind).Args(kind=kind)
    assert (
        row_scores(args, predictions, references)
        == score(kind, predictions, references).per_example
    )


def test_rows_alone_take_nothing_that_a_resident_process_would_keep() -> None:
    code = (
        "import sys\n"
        "from weighbridge.tasks.metrics.shipped import ExactMatchArgs\n"
        "from weighbridge.tasks.scoring import row_scores\n"
        "assert row_scores(ExactMatchArgs(), ['a'], ['a']) == [1.0]\n"
        "print({'evaluate', 'datasets', 'pandas', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
