"""Metrics: every shipped one keeps what all promise, and one that does not is found out."""

import itertools
from typing import Any, ClassVar, Literal

import pytest

from weighbridge.conformance.base import CheckFailed
from weighbridge.conformance.metric_checks import check_metric
from weighbridge.core import plugins
from weighbridge.core.errors import BadInput
from weighbridge.plugins import MetricArgs, Score, mean_score
from weighbridge.tasks.metrics.base import load_metric

ALONE = ("hub", "judge", "length")
"""Those that need the network, or are ours."""
NUMBERS = itertools.count()


class LengthArgs(MetricArgs):
    bounds: ClassVar[tuple[float, float]] = (0, 1)
    kind: Literal["length"] = "length"
    fault: str = ""


class Length:
    """How much of the longest answer each is, as a third party would write it."""

    Args: ClassVar[type[MetricArgs]] = LengthArgs
    uses: ClassVar[str] = "text"

    def score(self, args: LengthArgs, predictions: list[str], references: list[str]) -> Score:
        rows = [min(len(answer), 100) / 100 for answer in predictions]
        if args.fault == "sorted":
            rows = sorted(rows)
        if args.fault == "above":
            rows[0] = 2.0
        if args.fault == "drawn":
            rows[0] = next(NUMBERS) % 2
        if args.fault == "raises":
            rows = [1 / len(answer) for answer in predictions]
        return mean_score(rows)


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        plugins.BUILT_IN["metric"], "length", "tests.conformance.test_metric_checks:Length"
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(
            (kind, {})
            for kind in plugins.BUILT_IN["metric"]
            if kind not in ("hub", "judge", "length")
        ),
        ("nll", {"report": "perplexity"}),
        ("length", {}),
    ],
)
def test_every_metric_keeps_what_all_promise(kind: str, options: dict[str, Any]) -> None:
    assert len(check_metric(kind, **options)) == 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("sorted", "not in the order of the rows"),
        ("above", "row number 0 has 2.0, outside of 0 to 1"),
        ("drawn", "the same rows were"),
    ],
)
def test_a_metric_that_breaks_a_promise_is_found_out(fault: str, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        check_metric("length", fault=fault)


def test_a_metric_that_raises_is_told_the_row() -> None:
    with pytest.raises(
        BadInput, match=r"""'length': row number 2 \(answer ""\): ZeroDivisionError"""
    ):
        check_metric("length", fault="raises")


class NoMetric:
    Args = LengthArgs
    uses = "pictures"


@pytest.mark.parametrize(
    ("name", "said"),
    [("NoMetric", "its uses is 'pictures'"), ("NUMBERS", "its Args is no class derived from")],
)
def test_what_is_no_metric_is_refused_by_name(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"tests.conformance.test_metric_checks:{name}"
    monkeypatch.setitem(plugins.BUILT_IN["metric"], f"made {name}", path)
    with pytest.raises(BadInput, match=f"loading metric 'made {name}': {said}"):
        load_metric(f"made {name}")
