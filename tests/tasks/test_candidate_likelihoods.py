"""Likelihoods: each reference is read once, by tokens of the same cut, and what is missing is
said.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.stand_ins.engine import StandInArgs, StandInEngine
from tests.tasks.test_evaluate import chat, stored_rows
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.candidate_answers import Answers
from weighbridge.tasks.candidate_likelihoods import NO_REFERENCE, OTHER_TOKENS, Asked, Likelihoods
from weighbridge.tasks.data import Row
from weighbridge.tasks.encoding import encode, load_tokenizer
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.evaluation_rows import evaluation_rows, named
from weighbridge.tasks.left_out import left_out
from weighbridge.tasks.metrics.kl import KlArgs
from weighbridge.tasks.metrics.shipped import ExactMatchArgs, NllArgs
from weighbridge.tasks.reference_distributions import read_distributions, reference_distributions
from weighbridge.tasks.scoring import score_rows

BOTH = [NllArgs(), KlArgs(top=2)]


class Telling(StandInEngine):
    """Says of every token that it is as likely as another one, and counts how often it is asked."""

    asked = 0

    def token_distributions(
        self, url: str, prompt: Sequence[int], completion: Sequence[int], top: int
    ) -> list[dict[int, float]]:
        type(self).asked += 1
        return [{token: math.log(0.5), -1: math.log(0.5)} for token in completion]


class TellingTokens(StandInEngine):
    """Tells tokens' own log-probabilities alone."""

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        return [-1.0] * len(completion)


def asked(engine: StandInEngine, tokenizer: Path) -> Asked:
    return Asked("", engine, tokenizer, lambda ask, items: [ask(item) for item in items])


@pytest.fixture
def rows() -> list[Row]:
    return named([chat(number) for number in range(4)])


def certain(rows: list[Row], tokenizer: Path) -> dict[str, list[dict[int, float]]]:
    encoded = encode(load_tokenizer(tokenizer), rows)
    return {
        row.id: [{token: 0.0} for token in one.completion]
        for row, one in zip(rows, encoded, strict=True)
    }


def test_one_reading_gives_both_metrics(rows: list[Row], tiny_model: Path) -> None:
    Telling.asked = 0
    told = asked(Telling(StandInArgs()), tiny_model).likelihoods(
        rows, BOTH, certain(rows, tiny_model)
    )
    assert Telling.asked == len(rows)
    scores = score_rows(BOTH, [""] * 4, rows, told.logprobs, told.distributions)
    assert scores["nll"].value == pytest.approx(math.log(2))
    assert scores["kl"].value == pytest.approx(math.log(2))
    assert scores["kl"].ids == [row.id for row in rows]


def test_an_engine_that_tells_none_is_named(rows: list[Row], tiny_model: Path) -> None:
    reference = certain(rows, tiny_model)
    silent = asked(StandInEngine(StandInArgs()), tiny_model).likelihoods(rows, BOTH, reference)
    assert (silent.logprobs, silent.distributions) == (None, None)
    assert "stand_in tells no log-probabilities" in silent.untold
    half = asked(TellingTokens(StandInArgs()), tiny_model).likelihoods(rows, BOTH, reference)
    assert half.logprobs
    assert "stand_in tells no likeliest tokens" in half.untold


def test_tokens_of_another_cut_are_not_compared(rows: list[Row], tiny_model: Path) -> None:
    reference = {name: tokens[1:] for name, tokens in certain(rows, tiny_model).items()}
    told = asked(Telling(StandInArgs()), tiny_model).likelihoods(rows, BOTH, reference)
    assert told.distributions is None
    assert told.logprobs
    assert told.untold == OTHER_TOKENS


def test_without_unquantized_weights_there_is_nothing_to_compare_with(
    rows: list[Row], tiny_model: Path
) -> None:
    told = asked(Telling(StandInArgs()), tiny_model).likelihoods(rows, [KlArgs()], None)
    assert told.untold == NO_REFERENCE


def test_the_unquantized_weights_are_asked_once_for_all_candidates(
    workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.tasks import generation, hf_models

    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    data = stored_rows(workspace, validation=[chat(n) for n in range(5)], test=[chat(6)])
    args = EvaluateArgs(metrics=[ExactMatchArgs(), KlArgs(top=3)])
    kept = reference_distributions(model, data, args, workspace)
    found = read_distributions(kept, "validation")
    assert found
    rows = evaluation_rows(data, "validation")
    encoded = encode(load_tokenizer(tiny_model), rows)
    expected = generation.logprobs(hf_models.load_model(tiny_model), encoded, batch_size=8)
    for row, one, logprobs in zip(rows, encoded, expected, strict=True):
        own = [known[token] for known, token in zip(found[row.id], one.completion, strict=True)]
        assert own == pytest.approx(logprobs, abs=1e-3)
        assert all(3 <= len(known) <= 4 for known in found[row.id])
        assert all(sum(map(math.exp, known.values())) <= 1.001 for known in found[row.id])
    monkeypatch.setattr(hf_models, "load_model", lambda _: pytest.fail("asked again"))
    assert reference_distributions(model, data, args, workspace) == kept
    none = EvaluateArgs(metrics=[ExactMatchArgs()])
    assert reference_distributions(model, data, none, workspace) is None


def test_a_metric_that_compares_is_told_of_where_it_is_left_out(rows: list[Row]) -> None:
    answers = Answers(rows, [""] * 4, [None] * 4, [""] * 4, Likelihoods(untold=NO_REFERENCE))
    assert left_out([KlArgs()], [answers], []) == [f"without kl: {NO_REFERENCE}"]
    compared = Likelihoods(distributions=[[({}, {})]] * 4)
    answers = Answers(rows, [""] * 4, [None] * 4, [""] * 4, compared)
    assert left_out([KlArgs()], [answers], []) == []
