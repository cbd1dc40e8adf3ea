"""The manifests of a target, as a pure function of release and arguments.

The same input gives the same bytes, on any machine: nothing is read, asked or dated here. There
are three groups, because they change at different times::

    revision_manifests   what one revision has of its own; made when it starts, deleted after it
    traffic_manifests    who gets clients' requests; changes with every step of a rollout
    target_manifests     what the target has once, whatever serves
    rolling_manifests    instead of these three: one Deployment, for what applies a repository

Each comes with the recipe's overlay merged in and is valid for server-side apply; `check_manifests`
holds them to `rules`. `access.role_manifests` says what whoever applies them must be allowed to do.
"""

from collections.abc import Mapping
from typing import Final

from weighbridge.serving.targets.base import Release
from weighbridge.serving.targets.kubernetes import access, names, rules, traffic
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.autoscaling import autoscaler
from weighbridge.serving.targets.kubernetes.names import Workload
from weighbridge.serving.targets.kubernetes.overlay import Manifest, check_overlay, with_overlay
from weighbridge.serving.targets.kubernetes.pods import pod_template

_ANY_RELEASE: Final = Release(
    name="model", version="1", bento="model:1", digest=f"sha256:{'0' * 64}"
)
"""Where only arguments are looked at."""


def revision_manifests(
    target: str, args: KubernetesArgs, release: Release, revision: str
) -> list[Manifest]:
    """Return Deployment, Service, PodDisruptionBudget and, where asked for, autoscaler.

    All are called `names.revision_name(target, revision)`. A Deployment that is scaled by an
    autoscaler names no number of replicas: applying it again must not take any away.

    Args:
        target: the target's name, as `weighbridge status` knows it.
        args: its arguments.
        release: what it is to serve.
        revision: name of the revision, such as `7` or `7.2`.

    Raises:
        BadInput: the name of an image can't be filled in.
    """
    workload = names.revision_workload(target, release, revision)
    return with_overlay(_workload_manifests(args, release, workload), args.overlay)


def traffic_manifests(
    target: str, args: KubernetesArgs, shares: Mapping[str, int]
) -> list[Manifest]:
    """Return the HTTPRoute, or without a gateway the Service, that clients ask.

    Args:
        target: the target's name.
        args: its arguments.
        shares: percent of the requests by name of the revision, for all that may get any. With a
            gateway, one of 0 gets those alone that name it in `X-Weighbridge-Version`.

    Raises:
        BadInput: there is no gateway, and more than one revision is to have a share.
    """
    return with_overlay(traffic.traffic_manifests(target, args, shares), args.overlay)


def target_manifests(target: str, args: KubernetesArgs) -> list[Manifest]:
    """Return what the target has once: the NetworkPolicy around its pods."""
    return with_overlay([access.network_policy(target, args)], args.overlay)


def check_manifests(
    target: str, args: KubernetesArgs, release: Release = _ANY_RELEASE, revision: str = "1"
) -> None:
    """Refuse what would lose requests or open a door, before anything of it is applied.

    Args:
        target: the target's name.
        args: its arguments, whose overlay may make anything of what is rendered.
        release: what it is to serve; without one, any.
        revision: name of the revision.

    Raises:
        BadInput: with a line for each fault; or the overlay is merged into nothing.
    """
    manifests = [
        *target_manifests(target, args),
        *revision_manifests(target, args, release, revision),
        *traffic_manifests(target, args, {revision: 100}),
    ]
    check_overlay(manifests, args.overlay)
    rules.check(manifests, target)


def rolling_manifests(
    target: str, args: KubernetesArgs, release: Release, *, port: int = names.HTTP_PORT
) -> list[Manifest]:
    """Return all that serves a release as one Deployment, whose image changes with the version.

    For what applies manifests of a repository, such as Argo CD and Flux: Kubernetes itself replaces
    the pods one by one then, and no step of ours comes between.

    Raises:
        BadInput: the name of an image can't be filled in.
    """
    manifests = [
        access.network_policy(target, args),
        *_workload_manifests(args, release, names.rolling_workload(target, release, port)),
        *traffic.rolling_traffic(target, args),
    ]
    check_overlay(manifests, args.overlay)
    return with_overlay(manifests, args.overlay)


def _workload_manifests(
    args: KubernetesArgs, release: Release, workload: Workload
) -> list[Manifest]:
    manifests = [
        _deployment(args, release, workload),
        traffic.service(workload.name, args, workload.labels, workload.selector),
        _disruption_budget(args, workload),
    ]
    if args.autoscale:
        manifests.append(autoscaler(args, args.autoscale, workload))
    return manifests


def _deployment(args: KubernetesArgs, release: Release, workload: Workload) -> Manifest:
    # One more first, then one less; where no card is left for one more, the other way about.
    update = (
        {"maxSurge": 1, "maxUnavailable": 0} if args.surge else {"maxSurge": 0, "maxUnavailable": 1}
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": workload.name,
            "namespace": args.namespace,
            "labels": workload.labels,
            "annotations": names.revision_annotations(release),
        },
        "spec": {
            **({} if args.autoscale else {"replicas": args.replicas}),
            # Images are pulled before the load begins.
            "progressDeadlineSeconds": 2 * args.load_seconds,
            "revisionHistoryLimit": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": update},
            "selector": {"matchLabels": workload.selector},
            "template": pod_template(args, release, workload),
        },
    }


def _disruption_budget(args: KubernetesArgs, workload: Workload) -> Manifest:
    """Return how many of the pods whoever drains a node may end at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": workload.name, "namespace": args.namespace, "labels": workload.labels},
        "spec": {
            # The last one is nobody's to take: a drained node waits until another serves.
            "maxUnavailable": 1 if args.least_replicas > 1 else 0,
            # What does not answer anyway may go.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": workload.selector},
        },
    }
