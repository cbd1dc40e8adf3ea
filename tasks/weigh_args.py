"""How candidates are weighed, as a recipe says it."""

import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    WrapValidator,
    model_validator,
)

from weighbridge.core.plugins import PluginArgs
from weighbridge.serving.engines.base import EngineArgs
from weighbridge.serving.quantiles import requests_to_decide
from weighbridge.serving.steadiness import WARM_UP, WORTH
from weighbridge.tasks.search.args import SearchArgs, check_options

FEWEST_REPEATS: Final = 3
"""Student's interval of two runs is 4.5 times as wide."""
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_ONE, _BY_DEVICE = TypeAdapter(Price), TypeAdapter(dict[str, Price])


def _price(value: Any, _: Any) -> float | dict[str, float] | None:
    # Not by the union: its errors name every member that a value might have been.
    if value is None:
        return None
    return (_BY_DEVICE if isinstance(value, dict) else _ONE).validate_python(value)


Prices = Annotated[Price | dict[str, Price] | None, WrapValidator(_price)]


class WeighArgs(BaseModel):
    """Which engines are tried, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engines: list[Annotated[SerializeAsAny[EngineArgs], PluginArgs("engine")]] = Field(
        min_length=1,
        description="Engines, with their options; each takes the variants whose format it knows.",
    )
    concurrency: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        [1, 4, 8],
        min_length=1,
        description="Numbers of requests under way together, each measured.",
    )
    context: int | None = Field(
        None,
        ge=256,
        description="Tokens of prompt and answer together that each answer has room for, on "
        "engines that reserve it; open: twice those of the longest row, 1024 at least, as far as "
        "the model goes.",
    )
    requests: int = Field(
        120,
        ge=1,
        description="Fewest requests per concurrency. To show that a p95 is within its limit takes "
        "90 of the steady span without one beyond it.",
    )
    seconds: float = Field(2.0, ge=0, description="Least time per concurrency.")
    max_seconds: float = Field(
        60.0,
        gt=0,
        description="Most time per concurrency; what is under way then is cut off and counts with "
        "its age. What hangs is waited for, up to `request_timeout`.",
    )
    arrivals: Literal["closed", "poisson"] = Field(
        "closed",
        description="`closed`: as many requests under way as `concurrency` says. `poisson`: after "
        "that, requests also come by themselves, at the highest rate at which `ttft_limit` and "
        "`tpot_limit` hold (select.objective `goodput`).",
    )
    ttft_limit: float | None = Field(
        None, gt=0, description="Seconds to the first token that a request of the goodput keeps."
    )
    tpot_limit: float | None = Field(
        None,
        gt=0,
        description="Seconds per token after the first that a request of the goodput keeps, on "
        "average over its answer.",
    )
    limit_percentile: float = Field(
        0.95, gt=0, lt=1, description="Which part of all requests must keep both."
    )
    rate_requests: int = Field(400, ge=10, description="Requests per rate that is tried, at most.")
    rate_seconds: float = Field(20.0, gt=0, description="Time per rate that is tried, at most.")
    most_rates: int = Field(8, ge=1, description="How many rates are tried at most.")
    prefix_cache: Literal["as_it_is", "avoid"] = Field(
        "as_it_is",
        description="`avoid`: under load each prompt begins with a number of its own, so that no "
        "engine answers from its prefix cache what prompts have in common.",
    )
    max_tokens: int = Field(64, ge=1, description="Most tokens of one answer under load.")
    request_timeout: float = Field(120.0, gt=0, description="Seconds one answer may take.")
    tune: bool = Field(
        True,
        description="Measure the engine options that are left open, such as threads and slots.",
    )
    search: SearchArgs | None = Field(
        None,
        description="Search the options of engines and variants together instead of tuning each "
        "alone.",
    )
    repeats: int = Field(
        5,
        ge=0,
        description="Blocks at least in which the finalists run again, each in a fresh process, "
        "before one is called faster than another; 0: none is, and no champion is replaced for "
        "its speed.",
    )
    max_repeats: int = Field(
        20,
        ge=0,
        description="Blocks at most, where there is a champion to beat; it is looked up to four "
        "times whether they are enough.",
    )
    repeat_seconds: float = Field(1.0, gt=0, description="Least time of one of these runs.")
    price_per_hour: Prices = Field(
        None,
        description="Of this machine, or by the device that an engine runs on: `{cpu: 0.10, cuda: "
        "3.50}`; gives the cost of tokens and of requests, at the load that decides.",
    )
    hosted_price: float | None = Field(
        None,
        gt=0,
        description="Of a million output tokens at a hosted endpoint; the report then says from "
        "which load on this machine is cheaper.",
    )
    currency: str = Field("USD", description="Of the price; only shown.")

    def price_on(self, device: str) -> float | None:
        """Return what an hour on a device costs; None where the recipe does not tell."""
        price = self.price_per_hour
        return price.get(device) if isinstance(price, dict) else price

    @model_validator(mode="after")
    def _rates_have_a_limit(self) -> Self:
        if self.arrivals == "poisson" and self.ttft_limit is None:
            raise ValueError(
                "arrivals poisson: the highest rate is the one at which a limit holds; give "
                "ttft_limit"
            )
        return self

    @model_validator(mode="after")
    def _requests_carry_the_percentile(self) -> Self:
        """Refuse a percentile that could not be shown to hold if all requests kept the limits."""
        part = self.limit_percentile
        needed = requests_to_decide(0, 0, part)
        shares = (1 - WARM_UP) * WORTH
        if self.arrivals == "closed" or (needed and shares * self.rate_requests >= needed):
            return self
        if needed is None:
            raise ValueError(f"limit_percentile {part:g}: no number of requests shows that")
        raise ValueError(
            f"limit_percentile {part:g} takes {needed:,} independent requests that all keep the "
            f"limits, and of rate_requests {self.rate_requests:,} at most "
            f"{int(shares * self.rate_requests):,} count; give {math.ceil(needed / shares):,}"
        )

    @model_validator(mode="after")
    def _searches_what_there_is(self) -> Self:
        if self.search is not None:
            check_options(self.search, self.engines)
        return self

    @model_validator(mode="after")
    def _time_suffices(self) -> Self:
        if self.max_seconds < self.seconds:
            raise ValueError(
                f"max_seconds {self.max_seconds:g} is less than the least time, seconds "
                f"{self.seconds:g}"
            )
        return self

    @model_validator(mode="after")
    def _repeats_suffice(self) -> Self:
        if 0 < self.repeats < FEWEST_REPEATS:
            raise ValueError(
                f"repeats {self.repeats}: no spread is known of so few; give {FEWEST_REPEATS} at "
                "least, or 0 for none"
            )
        return self
