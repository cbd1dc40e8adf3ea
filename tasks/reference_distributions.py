"""What the unquantized weights hold likely at every token of the references: for metric `kl`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Final

from weighbridge.core.artifact import Artifact
from weighbridge.core.files import read_json_lines
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import Split, content
from weighbridge.tasks.encoding import encode, load_tokenizer
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.evaluation_rows import evaluation_rows
from weighbridge.tasks.scoring import tokens_compared

VERSION: Final = 1
SPLITS: Final[tuple[Split, ...]] = ("validation", "test")
DIGITS: Final = 6
"""Of a log-probability, after the point: engines differ from each other by more."""
logger = logging.getLogger(__name__)


def reference_distributions(
    model: Artifact, data: Artifact, metrics: EvaluateArgs, workspace: Workspace
) -> Artifact | None:
    """Return the likeliest tokens at every token of the references, as JSONL by split; None where
    no metric compares them. They are made once for all candidates.
    """
    top = tokens_compared(metrics.metrics)
    if not top:
        return None
    rows = {split: evaluation_rows(data, split, metrics.limit) for split in SPLITS}
    inputs = {
        "model": model,
        "rows": fingerprint([content(of_split) for of_split in rows.values()]),
        "top": top,
    }
    outcome = workspace.stages.run(
        "weigh.reference",
        VERSION,
        Artifact,
        inputs,
        lambda: _make(model, data, metrics, top, workspace),
    )
    return outcome.value


def _make(
    model: Artifact, data: Artifact, metrics: EvaluateArgs, top: int, workspace: Workspace
) -> Artifact:
    # Imported here: they take torch with them.
    from weighbridge.tasks import generation, hf_models

    logger.info("asking the unquantized weights for the %d likeliest tokens", top)
    tokenizer = load_tokenizer(model.path)
    with hf_models.quiet(), hf_models.threads(model.path), workspace.store.scratch() as scratch:
        loaded = hf_models.load_model(model.path)
        for split in SPLITS:
            rows = evaluation_rows(data, split, metrics.limit)
            found = generation.distributions(
                loaded, encode(tokenizer, rows), top, batch_size=metrics.batch_size
            )
            with (scratch / f"{split}.jsonl").open("w") as stream:
                for row, tokens in zip(rows, found, strict=True):
                    stream.write(json.dumps({"id": row.id, "tokens": _short(tokens)}) + "\n")
        return workspace.store.add(scratch, "jsonl", {"model": model.digest, "data": data.digest})


def _short(tokens: Sequence[dict[int, float]]) -> list[dict[int, float]]:
    return [{token: round(value, DIGITS) for token, value in one.items()} for one in tokens]


def read_distributions(
    kept: Artifact | None, split: Split
) -> dict[str, list[dict[int, float]]] | None:
    """Return by id of a row the distribution at each token of its reference; None of nothing."""
    if kept is None:
        return None
    return {
        row["id"]: [{int(token): value for token, value in one.items()} for one in row["tokens"]]
        for row in read_json_lines(kept.path / f"{split}.jsonl")
    }
