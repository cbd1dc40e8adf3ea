"""The test split: how many rows a limit takes at least, and how often the split was used.

Whoever looks at the same rows again and again chooses on them in the end. So every decision that
they made is counted, in a file of the workspace that is named by their content.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock

from weighbridge.core.errors import BadInput
from weighbridge.core.files import replace_text
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import Row, content
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.metrics.shipped import ExactMatchArgs
from weighbridge.tasks.select_args import LIMITED, SelectArgs
from weighbridge.tasks.statistics.proportions import normal_quantile

WORN: Final = 3
"""Uses from which on the report speaks of them."""


def count_use(rows: Sequence[Row], decision: str, workspace: Workspace) -> int:
    """Note that these rows made a decision, and return how many they have made so far.

    `decision` is its fingerprint: one that is read again, or noted again after a kill, is the same.
    """
    path = _record(rows, workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        made = json.loads(path.read_text()) if path.exists() else []
        if decision not in made:
            made.append(decision)
            replace_text(path, json.dumps(made))
    return len(made)


def worn(uses: int) -> str:
    """Return what is to be said of a split that was used so often; empty: nothing yet."""
    if uses < WORN:
        return ""
    return (
        f"these rows have made {uses} decisions: what is right by chance is found in the end; "
        "fresh test rows decide as at first"
    )


def check_rows(test: Sequence[Row], args: SelectArgs, metrics: EvaluateArgs) -> None:
    """Refuse limits that so many test rows cannot show, whatever is answered.

    Of scores, only where answers are right or wrong, it is known before anything is measured.

    Raises:
        BadInput: with the fewest rows that can.
    """
    # Rows of one cluster tell no more than one of them where none differs.
    check_count(len({row.cluster or number for number, row in enumerate(test)}), args, metrics)


def check_count(apart: int, args: SelectArgs, metrics: EvaluateArgs) -> None:
    """Do the same of a number of rows, or of clusters where there are some.

    Raises:
        BadInput: with the fewest that can.
    """
    rows = min(apart, metrics.limit or apart)
    if args.on_doubt == "accept":
        return
    square = normal_quantile(0.05) ** 2
    for fault in LIMITED:
        most = args.most(fault)
        if most is not None and most < square / (rows + square):
            # Wilson's interval where no answer has the fault.
            fewest = math.ceil(square * (1 - most) / most)
            _refuse(rows, f"select.max_{fault} {most:.3g}", fewest, square / (rows + square))
    if not is_right_or_wrong(args.metric, metrics):
        return
    if args.max_loss is not None and args.max_loss <= square / (rows + square):
        # Tango's interval where no answer differs: its end is z²/(rows + z²) away.
        fewest = math.floor(square * (1 - args.max_loss) / args.max_loss) + 1
        _refuse(rows, f"select.max_loss {args.max_loss:.3g}", fewest, square / (rows + square))
    if args.floor is not None and rows / (rows + square) < args.floor < 1:
        # Wilson's interval where every answer is right.
        fewest = math.ceil(square * args.floor / (1 - args.floor))
        _refuse(rows, f"select.floor {args.floor:.3g}", fewest, rows / (rows + square))


def is_right_or_wrong(label: str, metrics: EvaluateArgs) -> bool:
    """Whether the metric calls each answer right or wrong, as is known before any is there."""
    return any(
        isinstance(metric, ExactMatchArgs) and metric.label() == label for metric in metrics.metrics
    )


def _refuse(rows: int, limit: str, fewest: int, best: float) -> None:
    raise BadInput(
        "checking the limits",
        f"{rows:,} test rows or clusters are there, and {limit} takes {fewest:,} at least to be "
        "shown",
        f"give more test rows, a limit beyond {best:.3g}, or `select.on_doubt: accept`",
    )


def _record(rows: Sequence[Row], workspace: Workspace) -> Path:
    return workspace.settings.home / "test-splits" / f"{fingerprint(content(rows))}.json"
