"""How many tokens of context an engine is given: by the rows that it is asked, not by its model."""

import math
from pathlib import Path
from typing import Final

from weighbridge.core.artifact import Artifact
from weighbridge.tasks.data import Split, read_rows
from weighbridge.tasks.encoding import encode, load_tokenizer

STEP: Final = 256
LEAST: Final = 1024
TIMES: Final = 2
"""Times the longest row: what is asked of the model once it serves may be longer than the data."""
LONG_ROWS: Final = 100
"""Rows whose tokens are counted, those with the most characters: all of them would take long."""


def context_for(longest: int) -> int:
    """Return the tokens of context for rows of so many tokens at most."""
    return max(LEAST, math.ceil(TIMES * longest / STEP) * STEP)


def longest_row(data: Artifact, tokenizer: Path, answer: int) -> int:
    """Return the tokens of the longest row, prompt and answer together.

    Args:
        data: Rows, in splits.
        tokenizer: Folder with the model's tokenizer.
        answer: Longest answer that is asked for, in tokens; a reference may be longer.
    """
    splits: tuple[Split, ...] = ("train", "validation", "test")
    rows = [row for split in splits for row in read_rows(data, split)]
    longest = sorted(rows, key=lambda row: len(row.model_dump_json()), reverse=True)[:LONG_ROWS]
    encoded = encode(load_tokenizer(tokenizer), longest)
    return max((len(row.prompt) + max(len(row.completion), answer) for row in encoded), default=0)
