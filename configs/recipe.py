"""The recipe: one YAML file, one model, the sum of the stages' arguments."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, LiteralString, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from weighbridge.configs.run_args import RunArgs
from weighbridge.rollout.deploy_args import DeployArgs, target_name
from weighbridge.serving.engines.base import engine_class
from weighbridge.serving.quantiles import fewest_for_interval, requests_to_decide
from weighbridge.serving.steadiness import requests_at
from weighbridge.tasks.answer_args import AnswerArgs
from weighbridge.tasks.download import DownloadArgs
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.finetune_args import FinetuneArgs
from weighbridge.tasks.metrics.base import MetricArgs
from weighbridge.tasks.optimize import OptimizeArgs
from weighbridge.tasks.optimizers.base import load_optimizer
from weighbridge.tasks.package import PackageArgs
from weighbridge.tasks.scoring import of_one_model
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.proving_rows import is_right_or_wrong
from weighbridge.tasks.weigh_args import WeighArgs

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
TRAINING_DEVICES = frozenset({"cpu", "cuda"})
"""Priced as well: a fine-tune may run on another device than the engines."""
_Place = tuple[Any, ...]
"""Keys and numbers of items, from the recipe down to a value."""


def _finetune(value: Any, _: Any) -> FinetuneArgs | Literal["none"]:
    # Not by the union: its errors name every member that a value might have been.
    return "none" if value == "none" else FinetuneArgs.model_validate(value)


# The title is what Prefect's run form calls the choice.
NoFinetune = Annotated[Literal["none"], Field(title="none")]
Finetune = Annotated[FinetuneArgs | NoFinetune, WrapValidator(_finetune)]


class Recipe(BaseModel):
    """From a base model to a served one, stage by stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Recipe")

    name: str = Field(
        pattern=NAME, description="Name of the registered model and of its experiment in MLflow."
    )
    download: DownloadArgs = Field(description="Base model and data: where their bytes come from.")
    finetune: Finetune = Field(
        default_factory=FinetuneArgs,
        description="LoRA fine-tune of the base model; `none`: the model is finished, and released "
        "as it was downloaded.",
    )
    evaluate: EvaluateArgs = Field(
        default_factory=EvaluateArgs,
        description="Metrics, and the gate that a fine-tune worse than its base fails.",
    )
    optimize: OptimizeArgs = Field(description="Servable variants made out of these weights.")
    weigh: WeighArgs = Field(description="Engines the variants are measured on, and how.")
    select: SelectArgs = Field(
        default_factory=SelectArgs, description="Limits and objective that decide the winner."
    )
    package: PackageArgs = Field(default_factory=PackageArgs, description="The winner's Bento.")
    deploy: DeployArgs = Field(
        description="Where the winner serves, and whether it is promoted by itself."
    )
    run: RunArgs = Field(
        default_factory=RunArgs,
        description="Where stages run: in the flow's process, or as jobs of work pools.",
    )

    @property
    def target(self) -> str:
        """Name of the target: the model's where nothing else is said."""
        return self.deploy.name or self.name

    @field_validator("name")
    @classmethod
    def _names_a_target(cls, name: str) -> str:
        return target_name(name)

    @model_validator(mode="wrap")
    @classmethod
    def _has_no_truth_for_a_number(
        cls, given: Any, handler: ModelWrapValidatorHandler[Self]
    ) -> Self:
        """Refuse `r: yes`, which pydantic takes for 1."""
        recipe = handler(given)
        if wrong := list(_truths_as_numbers(given, recipe.model_dump(), ())):
            raise ValidationError.from_exception_data("Recipe", wrong)
        return recipe

    @model_validator(mode="after")
    def _can_be_written_down(self) -> Self:
        """Refuse what JSON has no form for: a recipe is kept as JSON, and read from it again."""
        if wrong := list(_not_json(self.model_dump(), ())):
            raise ValidationError.from_exception_data("Recipe", wrong)
        return self

    @model_validator(mode="after")
    def _engines_take_what_is_made(self) -> Self:
        """Refuse variants that no engine takes: now, and not after the fine-tune."""
        formats = {load_optimizer(variant.kind).format for variant in self.optimize.variants}
        accepted = {
            name for engine in self.weigh.engines for name in engine_class(engine.kind).formats
        }
        if not formats & accepted:
            kinds = ", ".join(sorted({engine.kind for engine in self.weigh.engines}))
            raise ValueError(
                f"none of the engines ({kinds}) serves {', '.join(sorted(formats))}; add an engine "
                "or a variant"
            )
        return self

    @model_validator(mode="after")
    def _asks_for_no_fine_tune_where_there_is_none(self) -> Self:
        if self.finetune != "none":
            return self
        if adapters := [v.label() for v in self.optimize.variants if v.keeps_adapter]:
            raise ValueError(
                f"{adapters[0]} leaves the fine-tune's adapter out of the weights, and `finetune` "
                "is none; leave this variant out"
            )
        if self.evaluate.gate or self.evaluate.min_gain:
            raise ValueError(
                "evaluate.gate and evaluate.min_gain compare a fine-tune with its base, and "
                "`finetune` is none; leave them out"
            )
        return self

    @model_validator(mode="after")
    def _selects_by_what_is_measured(self) -> Self:
        """Refuse limits and objectives that no measurement of this recipe can tell."""
        select, weigh = self.select, self.weigh
        metrics = {metric.label(): metric for metric in self.evaluate.metrics}
        if select.metric not in metrics:
            raise ValueError(
                f"select.metric '{select.metric}' is none of evaluate.metrics: {', '.join(metrics)}"
            )
        if select.needs_price and weigh.price_per_hour is None:
            raise ValueError(
                f"select asks for a cost ({select.needs_price}), and there is no "
                "weigh.price_per_hour"
            )
        self._prices_are_of_devices_that_are_used()
        if select.concurrency is not None and select.concurrency not in weigh.concurrency:
            weighed = ", ".join(map(str, weigh.concurrency))
            raise ValueError(
                f"select.concurrency {select.concurrency} is none of weigh.concurrency: {weighed}"
            )
        if select.objective == "goodput" and weigh.arrivals != "poisson":
            raise ValueError("select.objective goodput: give weigh.arrivals `poisson` and limits")
        if select.metric not in {one.label() for one in of_one_model(self.evaluate.metrics)}:
            raise ValueError(
                f"select.metric {select.metric} says nothing of a model alone: limit it with "
                "select.max_kl"
            )
        if select.max_kl is not None and "kl" not in metrics:
            raise ValueError("select.max_kl: `kl` is none of evaluate.metrics")
        if unlimited := _not_counted(self.evaluate.answers, select):
            raise ValueError(unlimited)
        if wrong := _not_carried(select, weigh):
            raise ValueError(wrong)
        if wrong := _out_of_reach("select.floor", select.floor, metrics[select.metric]):
            raise ValueError(wrong)
        highest = metrics[select.metric].bounds[1]
        if (
            select.floor == highest
            and select.on_doubt == "refuse"
            and is_right_or_wrong(select.metric, self.evaluate)
        ):
            raise ValueError(
                f"select.floor {highest:g} cannot be shown by any number of rows: give a lower "
                "one, or `on_doubt: accept`"
            )
        return self

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        """Refuse what no fine-tune, no version and no step of a rollout could keep."""
        metrics = {metric.label(): metric for metric in self.evaluate.metrics}
        gate = metrics[self.evaluate.gate_label]
        lowest, highest = gate.bounds
        if self.evaluate.min_gain > highest - lowest:
            raise ValueError(
                f"evaluate.min_gain {self.evaluate.min_gain:.4g}: {gate.label()} lies between "
                f"{lowest:g} and {highest:g}"
            )
        monitor, rollout = self.deploy.monitor, self.deploy.rollout
        if monitor.metric and monitor.metric not in metrics:
            raise ValueError(
                f"deploy.monitor.metric '{monitor.metric}' is none of evaluate.metrics: "
                f"{', '.join(metrics)}"
            )
        watched = metrics[monitor.metric or self.select.metric]
        if wrong := _out_of_reach("deploy.monitor.floor", monitor.floor, watched):
            raise ValueError(wrong)
        if rollout.step_deadline < rollout.step_seconds:
            raise ValueError(
                f"deploy.rollout.step_deadline {rollout.step_deadline:g} is less than the least "
                f"time of a step, step_seconds {rollout.step_seconds:g}: none would ever pass"
            )
        return self

    def _prices_are_of_devices_that_are_used(self) -> None:
        """Refuse prices by device that name none, and engines without one where a cost decides."""
        prices = self.weigh.price_per_hour
        if not isinstance(prices, dict):
            return
        devices = {
            engine.kind: engine_class(engine.kind).capabilities.devices
            for engine in self.weigh.engines
        }
        known = TRAINING_DEVICES.union(*devices.values())
        if unknown := sorted(set(prices) - known):
            raise ValueError(
                f"weigh.price_per_hour names the device '{unknown[0]}'; devices are: "
                f"{', '.join(sorted(known))}"
            )
        for kind, runs_on in devices.items():
            if self.select.needs_price and not runs_on & set(prices):
                raise ValueError(
                    f"select asks for a cost ({self.select.needs_price}), and weigh.price_per_hour "
                    f"has none for {kind}, which runs on {' or '.join(sorted(runs_on))}"
                )


def _out_of_reach(name: str, floor: float | None, metric: MetricArgs) -> str:
    """Return that a floor lies where the metric never is; empty where it does not."""
    lowest, highest = metric.bounds
    if floor is None or lowest <= floor <= highest:
        return ""
    return f"{name} {floor:.4g}: {metric.label()} lies between {lowest:g} and {highest:g}"


def _not_counted(answers: AnswerArgs, select: SelectArgs) -> str:
    """Return which limit is on faults that the recipe does not have counted; empty: on none."""
    if select.max_refused is not None and answers.refusals == ():
        return "select.max_refused: evaluate.answers.refusals is empty, so none are counted"
    if select.max_malformed is not None and answers.format == "any" and not answers.json_schema:
        return "select.max_malformed: evaluate.answers asks for no format"
    return ""


def _not_carried(select: SelectArgs, weigh: WeighArgs) -> str:
    """Return that the requests are too few for the p95 that decides, or to show that it keeps its
    limit, if not one of them took longer; empty where they suffice, or where doubt is accepted.
    """
    level = select.concurrency or max(weigh.concurrency)
    # What begins before each stream has ended one is warm-up.
    warm_up = 2 * level - 1
    left = max(requests_at(weigh.requests, level) - warm_up, 0)
    takes = {}
    if select.objective == "latency":
        needed = fewest_for_interval(0.95)
        takes[needed] = f"objective latency is a p95, which takes {needed} requests after the"
    if select.max_ttft_p95 is not None:
        needed = requests_to_decide(0, 0, 0.95) or 0
        takes[needed] = f"max_ttft_p95 takes {needed} requests, none of them beyond it, after the"
    most = max(takes, default=0)
    if left >= most or select.on_doubt == "accept":
        return ""
    return (
        f"select.{takes[most]} warm-up, and weigh.requests {weigh.requests} may leave {left} at "
        f"concurrency {level}; give {most + warm_up}, or `select.on_doubt: accept`"
    )


def _truths_as_numbers(given: Any, taken: Any, place: _Place) -> Iterator[InitErrorDetails]:
    """Yield where a number was made of true or false."""
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield _wrong("must be a number", place, given)
    elif isinstance(given, dict) and isinstance(taken, dict):
        for name, value in given.items():
            yield from _truths_as_numbers(value, taken.get(name), (*place, name))
    elif isinstance(given, list) and isinstance(taken, list | tuple):
        for number, (one, other) in enumerate(zip(given, taken, strict=False)):
            yield from _truths_as_numbers(one, other, (*place, number))


def _not_json(value: Any, place: _Place) -> Iterator[InitErrorDetails]:
    """Yield where values stand that no JSON holds."""
    if isinstance(value, float) and not math.isfinite(value):
        yield _wrong("must be a finite number", place, value)
    elif isinstance(value, bytes):
        yield _wrong("must be text, not bytes", place, value)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _not_json(item, (*place, name))
    elif isinstance(value, list | tuple | set):
        for number, item in enumerate(value):
            yield from _not_json(item, (*place, number))


def _wrong(what: LiteralString, place: _Place, given: Any) -> InitErrorDetails:
    """Return an error at a place of the recipe, which a reader finds the line of."""
    keys = tuple(part if isinstance(part, int | str) else str(part) for part in place)
    return InitErrorDetails(type=PydanticCustomError("recipe", what), loc=keys, input=given)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors and for Prefect's run form."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
