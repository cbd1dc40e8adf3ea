"""Whether candidates were measured on machines alike: speeds of others say nothing together."""

from collections.abc import Sequence
from typing import Final

from weighbridge.core.errors import BadInput
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import Objective

PARTS: Final = ("processor", "cores", "memory", "gpu")
"""What speed and memory hold for; which host of that kind it was does not matter."""


def kinds(measurements: Sequence[Measurement]) -> dict[str, list[str]]:
    """Return by kind of machine the labels of those that were measured on it.

    Those of which that is not known, as in records of earlier releases, are left out.
    """
    labels: dict[str, list[str]] = {}
    for one in measurements:
        known = [one.machine[part] for part in PARTS if part in one.machine]
        if known and not one.failure:
            labels.setdefault(", ".join(known), []).append(one.candidate.label)
    return labels


def are_alike(measurements: Sequence[Measurement]) -> bool:
    """Whether all were measured on machines of one kind."""
    return len(kinds(measurements)) < 2


def compared(measurements: Sequence[Measurement], args: SelectArgs) -> str:
    """Return what is to be said of the machines; empty where they are alike.

    Raises:
        BadInput: they are not, and what decides depends on the machine.
    """
    found = kinds(measurements)
    if len(found) < 2:
        return ""
    seen = "; ".join(f"{', '.join(labels)} on {kind}" for kind, labels in found.items())
    if Objective(args).is_paced:
        raise BadInput(
            f"comparing candidates by {args.objective}",
            f"they were measured on unequal machines: {seen}",
            "weigh them on a pool whose machines are all of one kind; run again then, and what "
            "was measured on that kind is reused",
        )
    return f"figures of speed and memory are of unequal machines: {seen}"
