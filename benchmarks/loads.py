"""What the benchmarks of servers share: requests that no cache answers, and the demo's model to
send them to.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weighbridge.core.workspace import Workspace
from weighbridge.serving.load_figures import LoadFigures

if TYPE_CHECKING:
    from weighbridge.tasks.download import Downloaded

LONG = "My order came late and the box was open, please tell me what happens now. " * 3
SHORT = "is late, why?"


class Payloads:
    """Requests that all differ from their first word on, so that no prompt is ever found in a
    cache.
    """

    def __init__(self, prompt: str, tokens: int, options: Mapping[str, Any] | None = None) -> None:
        """Take the prompt, the tokens of an answer, and further options of a request: by default
        that an answer has all its tokens.
        """
        self._prompt = prompt
        self._options = {
            "max_tokens": tokens,
            "temperature": 0,
            **({"ignore_eos": True} if options is None else options),
        }
        self._numbers = itertools.count(100_000)

    def take(self, count: int) -> list[dict[str, object]]:
        """Return the next `count` requests."""
        return [
            {
                "messages": [{"role": "user", "content": f"{number} {self._prompt}"}],
                "stream_options": {"include_usage": True},
                **self._options,
            }
            for number in itertools.islice(self._numbers, count)
        ]


def by_side(
    turns: Mapping[str, Sequence[LoadFigures]], figure: Callable[[LoadFigures], float]
) -> dict[str, list[float]]:
    """Return one figure of every turn of every side."""
    return {side: [figure(load) for load in loads] for side, loads in turns.items()}


def ttft_ms(load: LoadFigures) -> float:
    """Return the median time to the first token; no number where there was none."""
    return math.nan if load.ttft_p50 is None else 1000 * load.ttft_p50


def demo_model(workspace: Workspace) -> "Downloaded":
    """Download the demo's base model and data as the demo itself does."""
    from examples.support_tickets import ensure
    from weighbridge.tasks.download import DownloadArgs, download, pin

    demo = ensure(workspace.settings.cache)
    args = DownloadArgs.model_validate(
        {"model": f"file://{demo}/base", "data": {"source": f"file://{demo}/data"}}
    )
    return download(pin(args, workspace), args, workspace)
