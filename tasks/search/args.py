"""How engine options are searched, as a recipe says it."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weighbridge.core.plugins import suggestion
from weighbridge.serving.engines.base import EngineArgs, engine_class

NOT_SEARCHED = frozenset({"kind", "start_timeout", "temperature", "top_p"})
"""Options that say who answers, or how answers are drawn: no matter of speed."""


class SearchArgs(BaseModel):
    """Which engine options are tried with every variant, and what that may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: Literal["auto"] | dict[str, dict[str, list[Any]]] = Field(
        "auto",
        description="By engine and option, the values to try; `auto`: what each engine thinks "
        "worth trying on this machine, of what the recipe leaves open.",
    )
    unless: list[dict[str, Any]] = Field(
        [],
        description="Values that are not tried together, such as "
        "`{flash_attn: off, cache_type_v: q8_0}`.",
    )
    seconds: float | None = Field(
        None, gt=0, description="Most time of the search, starts of engines included."
    )
    trials: int | None = Field(None, ge=1, description="Most starts of an engine.")
    run_seconds: float = Field(
        0.6, gt=0, description="Of one short run, at each of the lowest and highest concurrency."
    )
    seed: int = Field(0, ge=0, description="Two searches with the same one begin alike.")

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.seconds is None and self.trials is None:
            raise ValueError("a search needs a budget; give `seconds` or `trials`")
        return self


def check_options(args: SearchArgs, engines: list[EngineArgs]) -> None:
    """Refuse engines, options and values that do not exist, in one line.

    Raises:
        ValueError: one of them does not.
    """
    kinds = list(dict.fromkeys(engine.kind for engine in engines))
    known = set().union(*(_options_of(kind) for kind in kinds))
    named = {} if args.options == "auto" else args.options
    for kind, options in named.items():
        if kind not in kinds:
            raise ValueError(
                f"search.options names {kind}, which is none of the engines; "
                f"{suggestion(kind, kinds)}"
            )
        for name, values in options.items():
            _check_option(kind, name, values)
    for pair in args.unless:
        for name in pair.keys() - known:
            raise ValueError(
                f"search.unless: no engine has an option {name}; {suggestion(name, sorted(known))}"
            )


def _options_of(kind: str) -> set[str]:
    return set(engine_class(kind).Args.model_fields) - NOT_SEARCHED


def _check_option(kind: str, name: str, values: list[Any]) -> None:
    options = _options_of(kind)
    if name not in options:
        raise ValueError(
            f"search.options: {kind} has no option {name}; {suggestion(name, sorted(options))}"
        )
    if not values:
        raise ValueError(f"search.options: {kind}.{name} has no value to try")
    for value in values:
        try:
            engine_class(kind).Args.model_validate({"kind": kind, name: value})
        except ValidationError as exc:
            wrong = exc.errors()[0]["msg"]
            raise ValueError(f"search.options: {kind}.{name} {value!r}: {wrong}") from exc
