"""What the objects of a target are called and labelled: the same names every time."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from weighbridge.serving.targets.base import Release

MANAGER: Final = "weighbridge"
"""Field manager of server-side apply, and who manages what is labelled so."""
REVISION_LABEL: Final = "weighbridge/revision"
HTTP_PORT: Final = 3000
"""BentoML's own, through which all requests come: it refuses what clients may not ask."""
INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
MANAGER_LABEL: Final = "app.kubernetes.io/managed-by"
BENTO_ANNOTATION: Final = "weighbridge/bento"
DIGEST_ANNOTATION: Final = "weighbridge/digest"
PRE_STOP_ANNOTATION: Final = "weighbridge/pre-stop-seconds"
"""On a pod template: the longest time that its preStop takes, where that is a command."""
STOP_ANNOTATION: Final = "weighbridge/stop-seconds"
"""On a pod template: the time that its processes need to end after SIGTERM."""
_LONGEST_NAME: Final = 63
_LOOKS_LIKE_A_REVISION: Final = re.compile(r"-v\d+$")


_ROLLING: Final = "rolling"
"""Revision label of the one Deployment whose image changes with the version."""


@dataclass(frozen=True)
class Workload:
    """What a Deployment and all that belongs to it are called, and by what its pods are told."""

    target: str
    name: str
    revision: str
    """What its answers say in `X-Weighbridge-Version`."""
    labels: dict[str, str]
    selector: dict[str, str]
    port: int = HTTP_PORT


def revision_workload(target: str, release: Release, revision: str) -> Workload:
    """Return the names of what runs one revision beside others."""
    return Workload(
        target,
        revision_name(target, revision),
        revision,
        _release_labels(target, release, revision),
        revision_selector(target, revision),
    )


def rolling_workload(target: str, release: Release, port: int) -> Workload:
    """Return the names of what runs whichever version was applied last."""
    return Workload(
        target,
        target_name(target),
        release.version,
        _release_labels(target, release, _ROLLING),
        revision_selector(target, _ROLLING),
        port,
    )


def target_name(target: str) -> str:
    """Return the name of what a target has one of: its Service, its HTTPRoute, its records."""
    # No target may be named like a revision of another one.
    return _dns_label(target, taken=bool(_LOOKS_LIKE_A_REVISION.search(target)))


def revision_name(target: str, revision: str) -> str:
    """Return the name of what each revision has of its own: Deployment, Service and so on."""
    return _dns_label(f"{target_name(target)}-v{revision}")


def target_selector(target: str) -> dict[str, str]:
    """Return the labels that all pods of a target have, and no others."""
    # Somebody's Helm release may be called as a target is.
    return {INSTANCE_LABEL: target_name(target), MANAGER_LABEL: MANAGER}


def revision_selector(target: str, revision: str) -> dict[str, str]:
    """Return the labels that the pods of one revision have, and no others."""
    return {**target_selector(target), REVISION_LABEL: revision}


def target_labels(target: str) -> dict[str, str]:
    """Return the labels of what a target has one of."""
    return {
        "app.kubernetes.io/component": "model-server",
        "app.kubernetes.io/part-of": "weighbridge",
        **target_selector(target),
    }


def _release_labels(target: str, release: Release, revision: str) -> dict[str, str]:
    """Return the labels of what belongs to a workload, its pods included."""
    return {
        **target_labels(target),
        "app.kubernetes.io/name": _label_value(release.name),
        "app.kubernetes.io/version": _label_value(release.version),
        REVISION_LABEL: revision,
    }


def revision_annotations(release: Release) -> dict[str, str]:
    """Return what is noted with a revision, for people and for whoever reads the cluster."""
    return {BENTO_ANNOTATION: release.bento, DIGEST_ANNOTATION: release.digest}


def _dns_label(text: str, *, taken: bool = False) -> str:
    """Return a text as a name that a Service may have: changed texts get a mark of their own."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "target"
    plain = plain if plain[0].isalpha() else f"t-{plain}"
    if plain == text and len(plain) <= _LONGEST_NAME and not taken:
        return plain
    mark = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{plain[: _LONGEST_NAME - 7].rstrip('-')}-{mark}"


def _label_value(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_LONGEST_NAME].strip("-_.")
