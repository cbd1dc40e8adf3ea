"""What a candidate costs: the price of its machine's hour, over what it answers in one."""

from collections.abc import Mapping

from weighbridge.core.formatting import figure, human_seconds
from weighbridge.serving.engines.devices import nvidia_devices
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.selection.objective import figures_at
from weighbridge.tasks.weigh_args import WeighArgs


def with_cost(
    measurement: Measurement, args: WeighArgs, device: str, concurrency: int | None
) -> Measurement:
    """Return a measurement with its cost, at the load that decides.

    The price is no part of what is kept: it changes without anything being measured again.

    Args:
        measurement: of one candidate.
        args: with the price of an hour.
        device: what the candidate ran on.
        concurrency: load at which speed counts; None is the highest. Where rates were tried, it is
            the highest rate that kept the limits.
    """
    price = args.price_on(device)
    if price is None:
        return measurement
    tokens, requests = _useful(measurement, concurrency)
    return measurement.model_copy(
        update={
            "price_per_hour": price,
            "cost_per_million_tokens": price / (tokens * 3600) * 1e6 if tokens > 0 else None,
            "cost_per_thousand_requests": price / (requests * 3600) * 1e3 if requests > 0 else None,
        }
    )


def _useful(measurement: Measurement, concurrency: int | None) -> tuple[float, float]:
    """Return tokens and requests per second of answers that were whole and in time."""
    if measurement.rates:
        requests = measurement.sustained or 0.0
        lengths = measurement.goodput.answer_tokens if measurement.goodput else None
        return requests * (lengths or 0.0), requests
    load = figures_at(measurement, concurrency)
    return (load.useful_tokens_per_second, load.useful_requests_per_second) if load else (0.0, 0.0)


def cost_facts(
    winner: Measurement | None,
    training_seconds: float | None,
    args: WeighArgs,
    concurrency: int | None,
) -> dict[str, str]:
    """Return what training and serving cost, and from which load on the winner's machine pays.

    Args:
        winner: None where nothing is released.
        training_seconds: of the fine-tune; None where there was none.
        args: with prices.
        concurrency: load at which speed counts.
    """
    facts, training = {}, None
    if args.price_per_hour is not None:
        prices = _prices(args.price_per_hour, args.currency)
        facts["price"] = f"{prices}; costs are of whole answers {_load(args, concurrency)}"
    if winner is not None and (serving := _serving(winner, args.currency)):
        facts["serving the winner"] = serving
    if training_seconds is not None:
        price = args.price_on("cuda" if nvidia_devices() else "cpu")
        training = price * training_seconds / 3600 if price is not None else None
        cost = f", {figure(training)} {args.currency}" if training is not None else ""
        facts["training"] = f"{human_seconds(training_seconds)}{cost}"
    if winner is not None and (pays := _break_even(winner, training, args)):
        facts["break-even"] = pays
    return facts


def _prices(price: float | Mapping[str, float], currency: str) -> str:
    if not isinstance(price, Mapping):
        return f"{figure(price, 4)} {currency} an hour"
    return ", ".join(f"{figure(each, 4)} {currency} an hour on {on}" for on, each in price.items())


def _load(args: WeighArgs, concurrency: int | None) -> str:
    if args.arrivals == "poisson":
        return "at the highest rate that kept the limits"
    return f"at concurrency {concurrency or max(args.concurrency)}"


def _serving(winner: Measurement, currency: str) -> str:
    costs = (
        (winner.cost_per_million_tokens, "million tokens"),
        (winner.cost_per_thousand_requests, "1,000 requests"),
    )
    return ", ".join(
        f"{figure(cost)} {currency} per {what}" for cost, what in costs if cost is not None
    )


def _break_even(winner: Measurement, training: float | None, args: WeighArgs) -> str:
    """Return from which load on the winner's machine is cheaper than a hosted endpoint, and when
    that has paid for the training; empty where there is nothing to compare with.
    """
    ours, price = winner.cost_per_million_tokens, winner.price_per_hour
    hosted, currency = args.hosted_price, args.currency
    if hosted is None:
        return ""
    if ours is None or not price:
        return f"not known: {'set weigh.price_per_hour' if price is None else 'it costs nothing'}"
    against = f"{figure(hosted)} {currency} per million tokens elsewhere"
    if ours >= hosted:
        return (
            f"none: at full load a million tokens cost {figure(ours)} {currency}, against {against}"
        )
    paid = (
        f"; at full load {figure(training / (hosted - ours))} million tokens pay for the training"
        if training
        else ""
    )
    return (
        f"from {figure(price / hosted)} million tokens an hour on, {ours / hosted:.0%} of what it "
        f"can answer, against {against}{paid}"
    )
