"""What a search maximizes: the recipe's objective, as far as a short run shows it."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.select_args import Goal, SelectArgs

Figure = Literal["tokens/s", "requests/s", "requests/s within the limits", "1/TTFT p95", "1/memory"]
_FIGURES: Final[Mapping[Goal, Figure]] = {
    "requests": "requests/s",
    "request_cost": "requests/s",
    "goodput": "requests/s within the limits",
    "latency": "1/TTFT p95",
    "memory": "1/memory",
}
"""Of the others tokens per second: quality and size are the same under all options of a variant."""
LEAST_WITHIN: Final = 0.01
"""Part of the requests that counts where none kept the limits: one that misses them all with more
requests is still nearer to them.
"""


class Aim(BaseModel):
    """The objective of a search."""

    model_config = ConfigDict(frozen=True)

    figure: Figure = Field("tokens/s", description="What is maximized.")
    concurrency: int | None = Field(
        None, description="Load that decides; None: the lowest and the highest alike."
    )

    @classmethod
    def of(cls, args: SelectArgs) -> "Aim":
        """Return what a search for this objective maximizes."""
        return cls(figure=_FIGURES.get(args.objective, "tokens/s"), concurrency=args.concurrency)

    def levels(self, concurrency: Sequence[int]) -> list[int]:
        """Return at which of a weighing's concurrencies short runs load an engine."""
        if self.concurrency is not None:
            return [self.concurrency]
        return sorted({min(concurrency), max(concurrency)})

    def value(self, load: LoadFigures, memory: int) -> float:
        """Return the figure of one run, so that more is better; NaN where it has none.

        Args:
            load: what the run showed.
            memory: the most bytes that the engine took until its end; 0: nobody looked.
        """
        if self.figure == "requests/s":
            return load.requests_per_second
        if self.figure == "requests/s within the limits":
            return max(load.goodput or 0.0, LEAST_WITHIN * load.requests_per_second)
        if self.figure == "1/TTFT p95":
            return 1 / load.ttft_p95 if load.ttft_p95 else math.nan
        if self.figure == "1/memory":
            answered = memory and load.requests_per_second > 0
            return 1 / memory if answered else math.nan
        return load.tokens_per_second
