"""What merged weights were made of, for variants that keep the two apart."""

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace


def base_and_adapter(
    merged: Artifact, workspace: Workspace, doing: str
) -> tuple[Artifact, Artifact]:
    """Return the base model and the adapter that a fine-tune merged.

    Raises:
        BadInput: the weights were not made so.
        Unavailable: what they were made of is gone.
    """
    try:
        base, adapter = (workspace.store.files(merged.origin[part]) for part in ("base", "adapter"))
    except KeyError as exc:
        wrong = "nothing tells which base and which adapter the weights were merged from"
        raise BadInput(doing, wrong, "fine-tune again, or leave this variant out") from exc
    return workspace.store.assemble(base, "safetensors"), workspace.store.assemble(adapter, "peft")
