"""How engine options are searched, as a recipe says it."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weighbridge.core.plugins import suggestion
from weighbridge.serving.engines.base import EngineArgs, engine_class

NOT_SEARCHED = frozenset({"kind", "start_timeout", "temperature", "top_p"})
"""Options that say who answers, or how answers are drawn: no matter of speed."""
VARIANT: Final = "variant"
"""How a condition names what `optimize` has made, beside an engine's options and its `kind`."""


class SearchArgs(BaseModel):
    """Which engine options are tried with every variant, and what that may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: Literal["auto"] | dict[str, dict[str, list[Any]]] = Field(
        "auto",
        description="By engine and option, the values to try; `auto`: what each engine thinks "
        "worth trying on this machine, of what the recipe leaves open. The engine's defaults are "
        "tried as well, named or not.",
    )
    unless: list[dict[str, Any]] = Field(
        [],
        description="Values that are not tried together, such as "
        "`{flash_attn: 'off', cache_type_v: q8_0}`; a list means any of its values, `kind` the "
        "engine and `variant` what `optimize` has made.",
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
    named = {} if args.options == "auto" else args.options
    for kind, options in named.items():
        if kind not in kinds:
            raise ValueError(
                f"search.options names {kind}, which is none of the engines; "
                f"{suggestion(kind, kinds)}"
            )
        for name, values in options.items():
            _check_option(kind, name, values)
    for condition in args.unless:
        if not condition:
            raise ValueError("search.unless: a condition without an option leaves everything out")
        for name, values in condition.items():
            _check_condition(kinds, name, values if isinstance(values, list) else [values])


def as_taken(args: type[EngineArgs], options: Mapping[str, Any], name: str) -> Any:
    """Return the value of an option as the engine takes it with all of these, as JSON.

    Raises:
        ValidationError: it takes them not.
    """
    return args.model_validate(options).model_dump(mode="json")[name]


def _check_condition(kinds: list[str], name: str, values: list[Any]) -> None:
    """Refuse a condition that no setting can meet."""
    if name == "kind":
        for kind in values:
            if kind not in kinds:
                raise ValueError(
                    f"search.unless names {kind}, which is none of the engines; "
                    f"{suggestion(str(kind), kinds)}"
                )
        return
    takers = [kind for kind in kinds if name in _options_of(kind)]
    # What `optimize` makes is not known here, and a record's own options its file alone knows.
    if name == VARIANT or (not takers and any(map(_takes_anything, kinds))):
        return
    if not takers:
        known = sorted(set().union(*map(_options_of, kinds)))
        raise ValueError(
            f"search.unless: no engine has an option {name}; {suggestion(name, known)}"
        )
    for value in values:
        wrong = [_wrong(kind, name, value) for kind in takers]
        if all(wrong):
            raise ValueError(f"search.unless: {takers[0]}.{name} {value!r}: {wrong[0]}")


def _takes_anything(kind: str) -> bool:
    return engine_class(kind).Args.model_config.get("extra") == "allow"


def _alone(kind: str, name: str, value: Any) -> Any:
    return as_taken(engine_class(kind).Args, {"kind": kind, name: value}, name)


def _wrong(kind: str, name: str, value: Any) -> str | None:
    """Return why an engine does not take a value; None where it does."""
    try:
        _alone(kind, name, value)
    except ValidationError as exc:
        return str(exc.errors()[0]["msg"])
    return None


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
    taken: list[Any] = []
    for value in values:
        if wrong := _wrong(kind, name, value):
            raise ValueError(f"search.options: {kind}.{name} {value!r}: {wrong}")
        if (same := _alone(kind, name, value)) in taken:
            raise ValueError(f"search.options: {kind}.{name} has {same!r} twice")
        taken.append(same)
