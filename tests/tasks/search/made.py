"""A small grid as if it had been recorded: known speeds, known failures."""

import itertools
import math

from weighbridge.tasks.search.space import Space
from weighbridge.tasks.search.visits import Failure, GridPoint

THREADS, SLOTS, FLASH, CACHE = (1, 2, 4), (2, 4, 8), ("on", "off"), ("f16", "q8_0")
BEST = {"threads": 2, "parallel": 8, "flash_attn": "on", "cache_type_v": "q8_0"}


def grid(noise: float = 0.05, spread: float = 1.0) -> list[GridPoint]:
    """36 settings: nine fail for a pair of values, and one is the best by a tenth."""
    return [
        _point(*values, noise=noise, spread=spread)
        for values in itertools.product(THREADS, SLOTS, FLASH, CACHE)
    ]


def space(points: list[GridPoint]) -> Space:
    return Space(tuple(point.setting for point in points), (0,))


def _point(
    threads: int, slots: int, flash: str, cache: str, *, noise: float, spread: float
) -> GridPoint:
    setting = {"threads": threads, "parallel": slots, "flash_attn": flash, "cache_type_v": cache}
    if flash == "off" and cache == "q8_0":
        return GridPoint(
            setting=setting, start_seconds=0.5, failure=Failure(phase="start", why="no such pair")
        )
    log = {1: 0.0, 2: 0.5, 4: 0.2}[threads] + 0.1 * math.log2(slots) + 0.1 * (flash == "on")
    log += 0.1 * (setting == BEST)
    return GridPoint(
        setting=setting,
        start_seconds=0.5,
        run_seconds=1.0,
        repeats=[[100 * math.exp(spread * log)]],
        noise=4 * noise if threads == max(THREADS) else noise,
    )
