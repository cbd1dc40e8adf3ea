"""Stage finetune: base model and data -> a LoRA adapter and the merged weights.

On a processor, training is transformers' Trainer, asked for the logits of completions alone. TRL's
SFTTrainer is taken on a GPU, where its LM head scores the learned tokens alone as well, and where
its features are asked for: packing that keeps rows apart, activation checkpointing, and never
holding all logits at once, which counts with long completions and a vocabulary of 128,000.
Measured side by side with `python -m benchmarks.training`, one thread of a busy machine, losses
equal to six digits: at the demo's shape (2.5M parameters, 57 tokens a row) 4,570 tokens per
CPU-second against SFTTrainer's 3,140, at SmolLM2-135M's (120 tokens a row) 116 against 88, in 2.4
GB of memory against 2.9.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from filelock import FileLock

from weighbridge.core.artifact import Artifact
from weighbridge.core.disk import require_room
from weighbridge.core.errors import BadInput
from weighbridge.core.machine import let_waiting_threads_sleep
from weighbridge.core.stage_cache import canonical
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import ranks
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.encoding import Encoded, encode, load_tokenizer
from weighbridge.tasks.finetune_args import FinetuneArgs, Finetuned, OnLog, TrainingResult, ignore
from weighbridge.tasks.shared_checkpoints import SharedCheckpoints

VERSION: Final = 3
logger = logging.getLogger(__name__)


def identity(base: Artifact, data: Artifact, args: FinetuneArgs) -> dict[str, object]:
    """Return what identifies a fine-tune: equal ones give equal weights."""
    return {"base": base, "data": data, "args": args}


def finetune(
    base: Artifact, data: Artifact, args: FinetuneArgs, workspace: Workspace, on_log: OnLog = ignore
) -> Finetuned:
    """Train a LoRA adapter on `data`, merge it, and store both.

    A call that was killed goes on from its last whole checkpoint when it is made again with the
    same arguments, on another machine too where there is a shared store, and ends with the same
    losses. `on_log` is then told the steps before it once more, so that a new curve is whole.
    Several processes of this machine are started here; under torchrun every rank calls this, the
    first one writes, and all get the same result.

    Raises:
        BadInput: the data don't fit (empty, too long, no chat template), the model can't be loaded,
            the loss is NaN, or several machines are to take part.
        Unavailable: the disk or the GPU's memory is too small.
    """
    if args.ranks > 1 and not ranks.is_rank():
        return workspace.store.bind(ranks.launch(base, data, args, on_log))
    started = time.monotonic()
    # First of all: torch reads the setting once, while it is loaded.
    let_waiting_threads_sleep()
    rows, dropped = _training_rows(base, data, args)
    _check_disk(base, workspace)

    # Imported here: they take torch and PEFT with them, which importing this module must not.
    from weighbridge.tasks import hf_models, training

    with (
        _claim(workspace, base, data, args, first=ranks.is_first()) as folder,
        hf_models.quiet(),
        hf_models.threads(base.path) as count,
        _checkpoints(workspace, folder, first=ranks.is_first()) as share,
    ):
        run = training.train(base.path, rows, args, folder, on_log, share)
        facts = {
            "rows": str(len(rows)),
            "dropped_rows": str(dropped),
            "threads": str(count),
            **run.facts,
        }
        stored = training.once(lambda: _store(run, base, data, workspace))
    adapter, merged = workspace.store.bind([Artifact.model_validate(one) for one in stored])
    seconds = time.monotonic() - started
    logger.info(
        "fine-tuned in %.1f s: adapter %s, merged weights %s", seconds, adapter.short, merged.short
    )
    return Finetuned(
        adapter=adapter, merged=merged, losses=run.losses, facts=facts, seconds=seconds
    )


def _training_rows(base: Artifact, data: Artifact, args: FinetuneArgs) -> tuple[list[Encoded], int]:
    """Return the rows to train on, and how many were dropped."""
    rows = read_rows(data, "train")
    if not rows:
        raise BadInput("fine-tuning", "the data hold no training rows", "give at least one row")
    tokenizer = load_tokenizer(base.path)
    encoded = encode(tokenizer, rows)
    # What evaluation could not encode either is said before hours of training, not after them.
    for split in ("validation", "test"):
        encode(tokenizer, read_rows(data, split))
    limit, bound = _longest_allowed(base, args)
    long = [index for index, row in enumerate(encoded) if len(row) > limit]
    if long and not (args.drop_long and bound == "max_length"):
        first, longest = long[0], max(map(len, encoded))
        raise BadInput(
            "fine-tuning",
            f"row {first + 1} of train has {len(encoded[first])} tokens, {bound} is {limit} "
            f"({len(long)} of {len(rows)} rows are longer, the longest has {longest})",
            "raise finetune.max_length, or set finetune.drop_long"
            if bound == "max_length"
            else "shorten the rows",
        )
    kept = [row for row in encoded if len(row) <= limit]
    if not kept:
        raise BadInput(
            "fine-tuning", f"every row has more than {limit} tokens", "raise finetune.max_length"
        )
    if long:
        logger.warning(
            "%d of %d rows left out: longer than max_length %d", len(long), len(rows), limit
        )
    return kept, len(long)


def _longest_allowed(base: Artifact, args: FinetuneArgs) -> tuple[int, str]:
    """Return the most tokens that a row may have, and what sets that bound."""
    try:
        config = json.loads((base.path / "config.json").read_text())
    except (OSError, ValueError) as exc:
        raise BadInput(
            "fine-tuning", "the model has no readable config.json", "give a Hugging Face model"
        ) from exc
    context = config.get("max_position_embeddings")
    # With drop_long a row is dropped by the smaller of both bounds.
    if isinstance(context, int) and context < args.max_length and not args.drop_long:
        return context, "the model's context"
    return (
        min(context, args.max_length) if isinstance(context, int) else args.max_length
    ), "max_length"


def _check_disk(base: Artifact, workspace: Workspace) -> None:
    """Refuse a base that is too large for the disk.

    The merged weights are as large as the base; adapter and checkpoints are small beside them.
    """
    require_room(int(base.size * 1.2), "the merged model", workspace.store.root, "fine-tuning")


@contextmanager
def _claim(
    workspace: Workspace, base: Artifact, data: Artifact, args: FinetuneArgs, *, first: bool
) -> Iterator[Path]:
    """Give the folder of this very run, with checkpoints of an interrupted one; removed once it
    ended well.

    Only one process at a time works on a run. Bad input leaves nothing either: it would fail again.
    """
    identity = json.dumps(
        canonical({"base": base, "data": data, "args": args, "version": VERSION}), sort_keys=True
    )
    folder = workspace.settings.home / "runs" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The other ranks work in the same folder: they would wait for the lock of the first one, and it
    # for them at their first common step.
    with FileLock(f"{folder}.lock") if first else nullcontext():
        try:
            yield folder
        except BadInput:
            if first:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        # On every machine: the others have states of random numbers there.
        if ranks.is_first_of_machine():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _checkpoints(
    workspace: Workspace, folder: Path, *, first: bool
) -> Iterator[Callable[[Path], None]]:
    """Give what shares a checkpoint, where another machine may go on from it; fetch its last one.

    Of ranks that train together the first one does: the others get from it what they go on from.
    """
    # A repeated release takes nothing of others, and shares nothing.
    if workspace.shared is None or workspace.records is not None or not first:
        yield lambda _: None
        return
    checkpoints = SharedCheckpoints(folder.name, workspace.shared)
    checkpoints.fetch(folder)
    with checkpoints.sharing():
        yield checkpoints.share


def _store(
    run: TrainingResult, base: Artifact, data: Artifact, workspace: Workspace
) -> list[dict[str, object]]:
    """Put adapter and merged weights into the store; return them as JSON that travels between
    ranks.
    """
    from weighbridge.tasks import merging

    origin = {"made_by": "finetune", "base": base.digest, "data": data.digest}
    with workspace.store.scratch() as scratch:
        adapter, merged = scratch / "adapter", scratch / "merged"
        merging.write_adapter(run.adapter, adapter, base.origin.get("uri", base.digest))
        # From the adapter as it is stored, so that the two artifacts belong together.
        merging.write_merged(base.path, adapter, merged)
        adapter_artifact = workspace.store.add(adapter, "peft", origin)
        merged_artifact = workspace.store.add(
            merged, "safetensors", {**origin, "adapter": adapter_artifact.digest}
        )
    return [artifact.model_dump(mode="json") for artifact in (adapter_artifact, merged_artifact)]
