"""A candidate for release, and everything that was measured of it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from weighbridge.core.artifact import Artifact
from weighbridge.core.plugins import PluginArgs
from weighbridge.serving.engines.base import EngineArgs
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.statistics.repeats import USUAL_SPREAD, Drift


class Variant(BaseModel):
    """A servable artifact an optimizer made out of the merged weights."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(description="Unique within a recipe: `gguf-Q8_0`.")
    optimizer: str
    artifact: Artifact
    facts: dict[str, str] = Field(
        default_factory=dict, description="What the optimizer proved and used."
    )


class Candidate(BaseModel):
    """An artifact and the engine, with its options, that would serve it."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(description="`<engine>/<variant>`.")
    variant: Variant
    engine: Annotated[SerializeAsAny[EngineArgs], PluginArgs("engine")]

    @property
    def options(self) -> str:
        """Return the options that its engine does not have by default, for people."""
        return ", ".join(f"{name} {value}" for name, value in self.engine.changed().items())


class Repeat(BaseModel):
    """One short run of a candidate, in a fresh process, beside the others' runs of its block."""

    model_config = ConfigDict(frozen=True)

    block: int
    load: LoadFigures


class Noise(BaseModel):
    """What a weighing found of the noise in its speeds, with the plan by which they were repeated.

    Repeats may be compared where all of this is equal: they are of one weighing.
    """

    model_config = ConfigDict(frozen=True)

    weighing: str = Field(description="Identifies the repeats of one weighing.")
    looks: tuple[int, ...] = Field(
        description="Numbers of blocks after which it was planned to look."
    )
    ended: str = Field(description="Why no more blocks were run, as a sentence.")
    reference: str = Field(description="Label of the candidate that was measured at both ends.")
    spread: float = Field(
        USUAL_SPREAD,
        description="Standard deviation of the log of a single run, by the blocks up to the first "
        "look and the single runs before; the usual one in records of earlier releases.",
    )
    drift: Drift


class GpuUse(BaseModel):
    """Of the cards that an engine used, while it was under load."""

    model_config = ConfigDict(frozen=True)

    cards: int
    memory: int = Field(
        description="Most bytes that the engine had on them; all that was taken, where the driver "
        "does not tell processes apart, as in a container."
    )
    utilization: float | None = Field(
        None, description="Part of the time in which they computed, mean of time and cards."
    )
    clock_mhz: float | None = Field(None, description="Of their multiprocessors, mean.")
    lowest_clock_mhz: float | None = Field(
        None, description="Far below the mean where they were throttled."
    )


class Measurement(BaseModel):
    """Quality, speed, memory and cost of one candidate, through its own engine's HTTP endpoint."""

    model_config = ConfigDict(frozen=True)

    candidate: Candidate = Field(
        description="With the tuned engine options that every figure was taken under."
    )
    scores: dict[str, Score] = Field(description="By metric label, on the validation split.")
    test_scores: dict[str, Score] = Field(
        default_factory=dict, description="On the split no choice is made on."
    )
    faults: dict[str, dict[str, Score]] = Field(
        default_factory=dict,
        description="By split and fault, the share of answers that have it: failed, empty, "
        "truncated, refused, malformed. Nothing in records of earlier releases.",
    )
    uncounted: dict[str, str] = Field(
        default_factory=dict, description="By fault and metric, why it could not be told."
    )
    slices: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="By split and id of a row, the slice that it is of; empty without slices.",
    )
    predictions: Artifact | None = Field(
        description="JSONL, one row per example: prompt, reference, answer, scores."
    )
    answer_tokens: dict[str, float] = Field(
        default_factory=dict,
        description="Tokens of an answer, mean by split, counted by the model's own tokenizer "
        "whatever the engine counts; empty where the artifact has none.",
    )
    max_new_tokens: int = Field(128, description="Longest answer that was asked for, in tokens.")
    load: list[LoadFigures]
    goodput: LoadFigures | None = Field(
        None,
        description="At the highest rate that kept the limits; None where none did, or none was "
        "asked for.",
    )
    rates: list[LoadFigures] = Field(
        default_factory=list, description="At every rate that was tried, in that order."
    )
    load_seconds: float = Field(description="From process start to the first real token.")
    peak_memory: int = Field(description="Bytes, whole process group.")
    gpu: GpuUse | None = Field(
        None, description="Of the graphics cards under load; None where there are none."
    )
    price_per_hour: float | None = Field(
        None, description="Of the device it ran on, in the recipe's currency."
    )
    cost_per_million_tokens: float | None = Field(
        None,
        description="Of answers whole and in time, at the highest rate that kept the limits, else "
        "at the concurrency that decides; in the recipe's currency.",
    )
    cost_per_thousand_requests: float | None = Field(
        None, description="Under the same load, in the recipe's currency."
    )
    context: int | None = Field(
        None, description="Tokens that prompt and answer of one request may have together."
    )
    tuning: list[dict[str, int | float | str]] = Field(
        default_factory=list, description="Options tried and tokens/s seen."
    )
    repeats: list[Repeat] = Field(
        default_factory=list,
        description="Short runs in the same blocks as other finalists', at the load that decides.",
    )
    noise: Noise | None = Field(None, description="Of its repeats; None where there are none.")
    left_out: list[str] = Field(
        default_factory=list,
        description="What its engine cannot tell, and what that leaves out, as sentences.",
    )
    machine: dict[str, str] = Field(
        default_factory=dict, description="Processor, cores, memory, engine version."
    )
    failure: str = Field(
        "", description="Why it could not be measured; then every figure is empty."
    )

    @property
    def sustained(self) -> float | None:
        """Return the requests per second that keep the limits, at the highest rate at which enough
        of them do; 0 where no such rate was found, None where none was looked for.
        """
        if not self.rates:
            return None
        best = self.goodput
        return (best.rate or 0.0) * (best.within or 0.0) if best else 0.0
