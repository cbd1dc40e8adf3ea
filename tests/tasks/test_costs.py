"""Costs: at the load that decides, by the device, and beside a hosted endpoint."""

from typing import Any

import pytest

from tests.tasks.made import load, measured
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.tasks.costs import cost_facts, with_cost
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.weigh_args import WeighArgs


def args(**given: Any) -> WeighArgs:
    return WeighArgs(engines=[LlamaCppArgs(kind="llama_cpp")], **given)


def at(level: int, requests: float, in_time: float, tokens: float | None = 20.0) -> Any:
    """Figures at a concurrency, of which some answers were whole and in time."""
    figures = load(1000, level, requests_per_second=requests)
    return figures.model_copy(update={"goodput": in_time, "answer_tokens": tokens})


def candidate(*figures: Any) -> Measurement:
    return measured("a", cost=None, request_cost=None).model_copy(update={"load": list(figures)})


def test_costs_are_those_at_the_load_that_decides_and_not_at_the_best() -> None:
    both = candidate(at(1, 10, 10), at(8, 40, 40))
    decided = with_cost(both, args(price_per_hour=3.6), "cpu", 1)
    assert decided.cost_per_thousand_requests == pytest.approx(0.1)
    assert decided.cost_per_million_tokens == pytest.approx(1.0)
    highest = with_cost(both, args(price_per_hour=3.6), "cpu", None)
    assert highest.cost_per_thousand_requests == pytest.approx(0.025)


def test_what_is_cut_off_or_late_pays_for_nothing() -> None:
    late = with_cost(candidate(at(8, 40, 20)), args(price_per_hour=3.6), "cpu", None)
    assert late.cost_per_thousand_requests == pytest.approx(0.05)
    assert late.cost_per_million_tokens == pytest.approx(2.0)
    never = with_cost(candidate(at(8, 40, 0)), args(price_per_hour=3.6), "cpu", None)
    assert never.cost_per_thousand_requests is None


def test_older_figures_have_the_cost_of_all_their_tokens() -> None:
    older = candidate(load(1000, 8, requests_per_second=50))
    priced = with_cost(older, args(price_per_hour=3.6), "cpu", None)
    assert priced.cost_per_million_tokens == pytest.approx(1.0)
    assert priced.cost_per_thousand_requests == pytest.approx(0.02)


def test_at_rates_the_goodput_pays() -> None:
    rate = at(9, 30, 28).model_copy(update={"rate": 32.0, "within": 0.95})
    open_loop = candidate(at(8, 40, 40)).model_copy(update={"rates": [rate], "goodput": rate})
    priced = with_cost(open_loop, args(price_per_hour=3.6), "cpu", None)
    assert priced.cost_per_thousand_requests == pytest.approx(1 / (32.0 * 0.95))


def test_an_hour_has_the_price_of_its_device() -> None:
    prices = args(price_per_hour={"cpu": 3.6, "cuda": 36})
    slow, fast = (with_cost(candidate(at(8, 40, 40)), prices, on, None) for on in ("cpu", "cuda"))
    assert (slow.price_per_hour, fast.price_per_hour) == (3.6, 36)
    assert fast.cost_per_thousand_requests == pytest.approx(10 * slow.cost_per_thousand_requests)
    assert with_cost(candidate(at(8, 40, 40)), prices, "rocm", None).price_per_hour is None


@pytest.mark.parametrize(
    ("hosted", "said"),
    [
        (
            0.4,
            "from 0.25 million tokens an hour on, 25% of what it can answer, against 0.4 EUR per "
            "million tokens elsewhere; at full load 0.167 million tokens pay for the training",
        ),
        (
            0.05,
            "none: at full load a million tokens cost 0.1 EUR, against 0.05 EUR per million tokens "
            "elsewhere",
        ),
    ],
)
def test_the_load_from_which_an_own_machine_pays(hosted: float, said: str) -> None:
    prices = args(price_per_hour=0.1, hosted_price=hosted, currency="EUR")
    winner = measured("a", cost=0.1).model_copy(update={"price_per_hour": 0.1})
    assert cost_facts(winner, 1800.0, prices, 4) == {
        "price": "0.1 EUR an hour; costs are of whole answers at concurrency 4",
        "serving the winner": "0.1 EUR per million tokens, 0.2 EUR per 1,000 requests",
        "training": "1800.0 s, 0.05 EUR",
        "break-even": said,
    }


def test_without_prices_only_the_time_is_told() -> None:
    free = args(hosted_price=1.0)
    winner = measured("a", cost=None, request_cost=None)
    assert cost_facts(winner, 1800.0, free, None) == {
        "training": "1800.0 s",
        "break-even": "not known: set weigh.price_per_hour",
    }
    assert cost_facts(None, None, free, None) == {}
