"""Stage optimize: merged weights -> one servable artifact per variant, proved by its optimizer."""

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from weighbridge.core.artifact import Artifact
from weighbridge.core.plugins import PluginArgs
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.measurement import Variant
from weighbridge.tasks.optimizers.base import OptimizerArgs, load_optimizer

VERSION = 1

logger = logging.getLogger(__name__)


class OptimizeArgs(BaseModel):
    """Which variants of the fine-tuned model are made and weighed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: list[Annotated[SerializeAsAny[OptimizerArgs], PluginArgs("optimizer")]] = Field(
        min_length=1,
        description="One entry per variant: `kind` names the optimizer, its options follow.",
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> "OptimizeArgs":
        labels = [variant.label() for variant in self.variants]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two variants are called {', '.join(twice)}; leave one of them out")
        return self


class Optimized(BaseModel):
    """The variants, in the order of the recipe."""

    variants: list[Variant]


def check(model: Path, args: OptimizeArgs, workspace: Workspace, *, dry: bool = False) -> None:
    """Refuse every variant that cannot be made of this model, before time is spent on any.

    The base model will do: a fine-tune has its shape. With `dry` nothing is fetched for it.

    Raises:
        BadInput: the model or the options cannot work together.
        Unavailable: a tool, or room on the disk, is missing.
    """
    for variant in args.variants:
        optimizer = load_optimizer(variant.kind)
        optimizer.check(model, variant, workspace, dry=dry)


def optimize(
    merged: Artifact, data: Artifact, args: OptimizeArgs, workspace: Workspace
) -> Optimized:
    """Make every variant; those made before are reused one by one.

    Raises:
        BadInput: as `check`, or a variant is not faithful to the model.
        Unavailable: a tool cannot be run.
    """
    # Once more: what was checked before was the base, and of a plan without fetching anything.
    check(merged.path, args, workspace)
    return Optimized(
        variants=[_variant(merged, data, variant, workspace) for variant in args.variants]
    )


def _variant(
    merged: Artifact, data: Artifact, args: OptimizerArgs, workspace: Workspace
) -> Variant:
    optimizer, label = load_optimizer(args.kind), args.label()

    def compute() -> Variant:
        with workspace.store.scratch() as scratch:
            # A folder within the scratch folder: engines write logs and scripts write reports
            # beside it, and these belong to no artifact.
            out = scratch / label
            out.mkdir()
            facts = optimizer.optimize(merged, data, args, out, workspace)
            origin = {"uri": f"{args.kind}:{merged.digest}", "variant": label}
            artifact = workspace.store.add(out, optimizer.format, origin)
        return Variant(label=label, optimizer=args.kind, artifact=artifact, facts=facts)

    outcome = workspace.stages.run(
        "optimize.variant", optimizer.version, Variant, _inputs(merged, data, args), compute
    )
    size = f"{outcome.value.artifact.size / 1e6:.1f} MB"
    done = f"reused: {outcome.why}" if outcome.reused else f"made in {outcome.seconds:.1f} s"
    logger.info("variant %s, %s, %s", label, size, done)
    return outcome.value


def makers(args: OptimizeArgs) -> list[dict[str, Any]]:
    """Return version and environment of every variant's optimizer: they decide the result, too."""
    return [
        # They go into the whole stage's key, too. When only the record of each variant asked for
        # them, a new lock of a quantizer was passed over in silence.
        {"version": load_optimizer(variant.kind).version, "environment": _environment(variant)}
        for variant in args.variants
    ]


def _inputs(merged: Artifact, data: Artifact, args: OptimizerArgs) -> dict[str, Any]:
    return {"model": merged, "data": data, "args": args, "environment": _environment(args)}


def _environment(args: OptimizerArgs) -> str:
    """Return the digest of the lock of the optimizer's environment; empty where it has none."""
    lock = load_optimizer(args.kind).lock
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock else ""
