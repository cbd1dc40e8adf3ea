"""The highest rate of requests at which a candidate keeps the recipe's limits."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from weighbridge.serving.load_figures import LoadFigures, SpeedLimits
from weighbridge.serving.openai_client import Client, Payload
from weighbridge.tasks.weigh_args import WeighArgs

logger = logging.getLogger(__name__)

FIRST: Final = 0.7
"""Part of the rate of the closed loop that is tried first: an engine answers more at a time when it
never waits for anybody."""


def speed_limits(args: WeighArgs) -> SpeedLimits:
    """Return what an answer must keep to count."""
    return SpeedLimits(ttft=args.ttft_limit, tpot=args.tpot_limit, percentile=args.limit_percentile)


def measure_rates(
    url: str, payloads: Sequence[Payload], closed: Sequence[LoadFigures], args: WeighArgs
) -> tuple[LoadFigures | None, list[LoadFigures]]:
    """Return the figures at the highest rate that kept the limits, and all that were tried; nothing
    where the recipe asks for no rates.

    Raises:
        Unavailable: the load generator could not send in time.
    """
    if args.arrivals == "closed":
        return None, []
    # Recipes import this module, and the generator an event loop.
    from weighbridge.serving.load_sender import Sender
    from weighbridge.serving.open_loop import run_rate
    from weighbridge.serving.rate_search import highest_rate

    limits = speed_limits(args)
    run = partial(
        run_rate,
        Sender(url, Client(url).model, args.request_timeout),
        payloads,
        limits=limits,
        requests=args.rate_requests,
        seconds=args.rate_seconds,
    )
    capacity = max((level.requests_per_second for level in closed), default=0.0)
    # Ten requests at least must fit into the time.
    first = max(FIRST * capacity, 10 / args.rate_seconds)
    found, tried = highest_rate(run, limits, first, args.most_rates)
    for figures in tried:
        logger.info(
            "at %.3g requests/s %.1f %% kept the limits%s",
            figures.rate,
            100 * (figures.within or 0.0),
            ": saturated" if figures.saturated else "",
        )
    return found, list(tried)
