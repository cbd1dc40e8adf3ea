"""Measurements made up for the tests of select and report."""

from typing import Any

from weighbridge.core.artifact import Artifact
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Candidate, Measurement, Noise, Repeat, Variant
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select import Decision, select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.statistics.repeats import Drift


def exact(right: int, rows: int = 200) -> Score:
    """An exact match: so many of the rows right, the first ones."""
    share = right / rows
    return Score(
        value=share,
        low=share - 0.01,
        high=share + 0.01,
        per_example=[1.0] * right + [0.0] * (rows - right),
        ids=[str(row) for row in range(rows)],
    )


def nll(value: float) -> Score:
    return Score(
        value=value, low=value * 0.9, high=value * 1.1, per_example=[], greater_is_better=False
    )


def load(
    tokens_per_second: float,
    concurrency: int = 1,
    *,
    ttft: float = 0.05,
    errors: int = 0,
    requests_per_second: float = 16,
) -> LoadFigures:
    return LoadFigures(
        concurrency=concurrency,
        requests=32,
        errors=errors,
        output_tokens=1000,
        seconds=2.0,
        tokens_per_second=tokens_per_second,
        requests_per_second=requests_per_second,
        ttft_p50=ttft / 2,
        ttft_p95=ttft,
        itl_p50=0.001,
        itl_p95=0.002,
    )


def measured(
    label: str,
    *,
    right: int = 198,
    likelihood: float = 0.01,
    speed: float = 500.0,
    memory: int = 50 << 20,
    size: int = 2 << 20,
    ttft: float = 0.05,
    cost: float | None = 0.1,
    requests: float = 16,
    request_cost: float | None = 0.2,
    failure: str = "",
    errors: int = 0,
    content: str = "",
    test: int | None = None,
) -> Measurement:
    """One candidate on llama.cpp; `content` tells two artifacts of one label apart, and `test` is
    how many of the test rows are right, where it is not as many as of the others.
    """
    digest = "sha256:" + (content or label).encode().hex().ljust(64, "0")[:64]
    artifact = Artifact(digest=digest, format="gguf", size=size)
    variant = Variant(label=label, optimizer="gguf", artifact=artifact)
    scores = {} if failure else {"exact_match": exact(right), "nll": nll(likelihood)}
    return Measurement(
        candidate=Candidate(
            label=f"llama_cpp/{label}", variant=variant, engine=LlamaCppArgs(kind="llama_cpp")
        ),
        scores=scores,
        test_scores=scores if test is None else {**scores, "exact_match": exact(test)},
        predictions=artifact.model_copy(update={"format": "jsonl"}),
        load=[]
        if failure
        else [
            load(speed / 2, requests_per_second=requests / 2),
            load(speed, 8, ttft=ttft, errors=errors, requests_per_second=requests),
        ],
        load_seconds=0.4,
        peak_memory=0 if failure else memory,
        cost_per_million_tokens=None if failure else cost,
        cost_per_thousand_requests=None if failure else request_cost,
        machine={"processor": "a processor", "cores": "2"},
        failure=failure,
    )


REFERENCE = {"exact_match": exact(198), "nll": nll(0.01)}


def at_rates(label: str, met: float, missed: float, found: float) -> Measurement:
    """A candidate that was shown to keep its limits at one rate, and to miss them at another."""
    made = measured(label)
    load = made.load[-1]
    rates = [
        load.model_copy(update={"rate": rate, "within": within, "objective": objective})
        for rate, within, objective in (
            (met, 1.0, "met"),
            (found, 0.96, "undecided"),
            (missed, 0.5, "missed"),
        )
    ]
    return made.model_copy(update={"rates": rates, "goodput": rates[1]})


def repeated(measurement: Measurement, *shares: float, steady: bool = True) -> Measurement:
    """Run again at these shares of its speed, beside others of the same weighing."""
    figures = measurement.load[-1]
    runs = [
        Repeat(
            block=block,
            load=figures.model_copy(
                update={"tokens_per_second": figures.tokens_per_second * share}
            ),
        )
        for block, share in enumerate(shares)
    ]
    noise = Noise(
        weighing="w",
        looks=(len(shares),),
        ended="planned",
        reference="old",
        drift=Drift(
            change=None, differs="undecided", steady=steady, why="the machine became slower"
        ),
    )
    return measurement.model_copy(update={"repeats": runs, "noise": noise})


STEADY, OTHERWISE = (1.0, 1.01, 0.99, 1.005, 0.995), (1.004, 1.0, 0.995, 1.0, 1.001)
"""Five runs, as shares of their mean."""
NOISY = (1.2, 0.8, 1.1, 0.9, 1.0)


def decide(
    *measurements: Measurement, champion: Measurement | None = None, **limits: Any
) -> Decision:
    """What select decides of them by these limits."""
    return select(measurements, REFERENCE, champion, SelectArgs(**limits), REFERENCE)
