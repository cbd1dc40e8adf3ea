"""Manifests as files of a folder, for what applies a repository: Argo CD, Flux, `kubectl apply`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from weighbridge.core.errors import BadInput
from weighbridge.core.files import replace_text

HEADER: Final = "# Written by `weighbridge render`: what is changed here is lost the next time.\n"
KUSTOMIZATION: Final = "kustomization.yaml"
Manifest = Mapping[str, Any]


class _PlainDumper(yaml.SafeDumper):
    """Writes every value where it stands: no anchors, which people read badly."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(*documents: Manifest, compact: bool = False) -> str:
    """Return documents as YAML; the same documents give the same text.

    Args:
        documents: one after another, with `---` between.
        compact: whether the innermost lists and mappings stand in one line.
    """
    return yaml.dump_all(
        documents,
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None if compact else False,
    )


def write_manifests(
    folder: Path, manifests: Sequence[Manifest], beside: Mapping[str, str] | None = None
) -> list[Path]:
    """Write a file for each manifest, and the kustomization.yaml that lists them.

    What was written there before and is no longer needed is removed; other files stay.

    Args:
        folder: made where it is not there.
        manifests: what is to be applied, in this order.
        beside: further files by name, which the kustomization does not list.

    Returns:
        What was written, the kustomization last.

    Raises:
        BadInput: somebody else's kustomization.yaml is there, or the folder can't be written.
    """
    texts = {_file_name(one): as_yaml(one) for one in manifests}
    listed = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(texts),
    }
    written = {**texts, **(beside or {}), KUSTOMIZATION: as_yaml(listed)}
    doing = f"writing manifests to {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        outdated = _written_before(folder) - written.keys()
        # The list last, and what it no longer names after it: it never names what is not there.
        for name, text in written.items():
            replace_text(folder / name, HEADER + text)
        for name in outdated:
            (folder / name).unlink(missing_ok=True)
    except OSError as exc:
        raise BadInput(doing, str(exc), "give a folder that you may write to") from exc
    return [folder / name for name in written]


def _written_before(folder: Path) -> set[str]:
    """Return the names of the files that we wrote there."""
    kustomization = folder / KUSTOMIZATION
    if not kustomization.exists():
        return set()
    if not kustomization.read_text().startswith(HEADER):
        raise BadInput(
            f"writing manifests to {folder}",
            "there is a kustomization.yaml that somebody else wrote",
            "give an empty folder, and list that as a resource of yours",
        )
    files = [path for path in folder.glob("*.yaml") if path.is_file()]
    return {path.name for path in files if path.read_text().startswith(HEADER)}


def _file_name(manifest: Manifest) -> str:
    return f"{manifest['kind'].lower()}-{manifest['metadata']['name']}.yaml"
