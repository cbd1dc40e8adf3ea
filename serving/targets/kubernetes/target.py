"""Target `kubernetes`: each version a Deployment and a Service of its own in a cluster, and a
gateway's HTTPRoute, or a Service, at the address.

What clients are told to ask does not depend on the version: the route's host name, or the Service
of the target's name. Everything is made by server-side apply, so doing it again changes nothing.
State, commands and ledger lie in a ConfigMap beside it, the lock is a Lease: whoever deploys may do
so from any machine.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

from pydantic import Field

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.shared_store import SharedStore
from weighbridge.serving.openai_client import is_ready
from weighbridge.serving.targets.base import (
    NeverRan,
    Release,
    Revision,
    Share,
    Target,
    TargetArgs,
    free_name,
)
from weighbridge.serving.targets.kubernetes import names, pod_states
from weighbridge.serving.targets.kubernetes.api import Api, Object, connect
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.checks import check_cluster, route_problem
from weighbridge.serving.targets.kubernetes.manifests import (
    check_manifests,
    revision_manifests,
    target_manifests,
    traffic_manifests,
)
from weighbridge.serving.targets.kubernetes.objects import (
    contains,
    is_rolled_out,
    labels_of,
    leads_to,
    revision_of,
)
from weighbridge.serving.targets.kubernetes.pods import CONTAINER
from weighbridge.serving.targets.kubernetes.reach import Pods, door_to, forget, pods_of
from weighbridge.serving.targets.kubernetes.records import ClusterPlace
from weighbridge.serving.targets.kubernetes.requests_seen import PodTraffic, figures, in_flight
from weighbridge.serving.targets.records import TargetRecords
from weighbridge.serving.targets.shared_records import SharedRecords

logger = logging.getLogger(__name__)

READY_TIMEOUT: Final = 60.0
"""Seconds that a first completion may take."""
ROUTE_SECONDS: Final = 15.0
"""Seconds within which a gateway's controller must have taken a route."""
KILL_SECONDS: Final = 60.0
"""Seconds over its grace after which a pod is not waited for any more: its node is gone."""
_DELETED_LAST: Final = ("Service", "PodDisruptionBudget")


class KubernetesRevision(Revision):
    """A revision as a Deployment of a cluster."""

    args: KubernetesArgs = Field(description="By which it was made: later ones are others'.")


class PodLiveness:
    """Watches the pods of one revision since it was started."""

    def __init__(self, api: Api, pods: Pods, revision: KubernetesRevision) -> None:
        self._api, self._pods, self._revision = api, pods, revision
        self._before = pod_states.restarts(_listed(pods, anew=True))

    def check(self) -> None:
        """Raise Unavailable where a pod's process has ended; NeverRan where none can begin."""
        failure = pod_states.failure(_listed(self._pods), self._before)
        if failure is None:
            return
        doing, why = f"serving {self._revision.release.bento}", f"pod {failure.pod}: {failure.why}"
        if words := self._last_words(failure.pod, failure.container or CONTAINER):
            why = f"{why}. Its log ends:\n{words}\n"
        raise (Unavailable if failure.has_run else NeverRan)(doing, why)

    def memory(self) -> int:
        """Return 0: the cluster holds it to what it asked for."""
        return 0

    def _last_words(self, pod: str, container: str) -> str:
        """Return how the log of the process that ended ends; empty where there is none."""
        namespace = self._revision.args.namespace
        for previous in ("true", "false"):
            try:
                options = {"previous": previous, "tailLines": "10"}
                return self._api.log(namespace, pod, container, **options).strip()
            except Unavailable:
                continue
        return ""


class Kubernetes(Target[KubernetesArgs, KubernetesRevision]):
    """Serves in a cluster."""

    Args: ClassVar[type[TargetArgs]] = KubernetesArgs
    revision_model: ClassVar[type[Revision]] = KubernetesRevision

    def __init__(self, name: str, args: KubernetesArgs, home: Path) -> None:
        super().__init__(name, args, home)
        self._unreached = ""

    @cached_property
    def _api(self) -> Api:
        return connect(self.args.context)

    @property
    def address(self) -> str:
        """The base URL that clients use: the gateway's host name, or the Service's name."""
        gateway = self.args.gateway
        if gateway is not None:
            return f"{'https' if gateway.tls else 'http'}://{gateway.hostname}"
        port = "" if self.args.port == 80 else f":{self.args.port}"
        return f"http://{names.target_name(self.name)}.{self.args.namespace}.svc{port}"

    def records(self) -> TargetRecords:
        """Return what is written down of this target, in the cluster. Raises Unavailable."""
        return SharedRecords(ClusterPlace(self._api, self.args.namespace, self.name))

    def check(self) -> None:
        """Make sure that the cluster is there, and takes from us all that a rollout needs.

        Raises:
            Unavailable: no cluster, namespace, right or Gateway API.
            BadInput: the address is somebody else's, or there is no gateway, no GPU, no store; or
                the manifests would lose requests as the overlay makes them.
        """
        check_manifests(self.name, self.args)
        for remark in self.args.remarks():
            logger.info("%s: %s", self.name, remark)
        check_cluster(self._api, self.name, self.args)
        for manifest in self._wanted({}):
            self._own(manifest)
        if self.args.model == "init" and not Settings(home=self.home).store:
            assert self.args.store is not None  # the arguments' own check
            raise BadInput(
                f"deploying to {self.name}",
                f"its pods fetch the Bento from {self.args.store.uri}, and nothing is shared here",
                f"set WEIGHBRIDGE_STORE={self.args.store.uri}",
            )

    def problem(self) -> str:
        """Return why the gateway does not serve the route, where it says so."""
        try:
            return route_problem(self._api, self.name, self.args)
        except Unavailable as exc:
            return str(exc)

    def has(self, release: Release) -> bool:
        """Whether its Bento can be fetched; one that is in an image is the registry's to have."""
        store = Settings(home=self.home).store
        if self.args.model != "init" or not store:
            return True
        return SharedStore.at(store).has(release.digest)

    def prepare(self, release: Release, taken: Collection[str]) -> KubernetesRevision:
        """Name it, and check that its manifests can be made. Raises Unavailable, BadInput."""
        # Pods of one that was stopped may still be ending, under its labels.
        ending = {revision_of(pod) for pod in self._all_pods()}
        name = free_name(release.version, {*taken, *ending})
        check_manifests(self.name, self.args, release, name)
        service = names.revision_name(self.name, name)
        url = f"http://{service}.{self.args.namespace}.svc:{self.args.port}"
        return KubernetesRevision(name=name, release=release, url=url, args=self.args)

    def start(self, revision: KubernetesRevision) -> PodLiveness:
        """Apply its manifests, with no traffic to it. Raises Unavailable."""
        # Before: a restart that comes at once is one.
        liveness = PodLiveness(self._api, self._pods(revision), revision)
        for manifest in (
            *target_manifests(self.name, self.args),
            *revision_manifests(self.name, revision.args, revision.release, revision.name),
        ):
            self._api.apply(manifest)
        return liveness

    def answers(self, revision: KubernetesRevision) -> bool:
        """Whether all its pods are ready, and a real completion comes back."""
        self._unreached = ""
        # Asked many times a second while it loads: pods are looked up twice in a second.
        if not any(map(pod_states.is_ready, self._pods(revision).listed())):
            return False
        deployment = self._deployment(revision.name)
        if deployment is None or not is_rolled_out(deployment):
            return False
        if is_ready(self.url_of(revision), READY_TIMEOUT):
            return True
        self._unreached = self._pods(revision).why_unreached()
        return False

    def waits_for(self, revision: KubernetesRevision) -> str:
        """Return what its pods wait for, as the cluster says."""
        pods = _listed(self._pods(revision))
        # A Deployment with pods has been let make them.
        deployment = None if pods else self._deployment(revision.name)
        return pod_states.waits_for(pods, deployment) or self._unreached

    def is_healthy(self, revision: KubernetesRevision) -> bool:
        """Whether one of its pods is ready."""
        return any(map(pod_states.is_ready, _listed(self._pods(revision), anew=True)))

    def answers_clients(self, revision: KubernetesRevision) -> bool:
        """Whether it is well, and the address leads to it."""
        try:
            live = [self._live(manifest) for manifest in self._wanted({revision.name: 100})]
        except Unavailable:
            return False
        name = names.revision_name(self.name, revision.name)
        return self.is_healthy(revision) and any(leads_to(one, revision.name, name) for one in live)

    def running_since(self, revision: KubernetesRevision) -> float:
        """Return the Unix time at which the oldest process that runs has started; 0: none does."""
        times = [
            datetime.fromisoformat(running["startedAt"]).timestamp()
            for pod in _listed(self._pods(revision), anew=True)
            for status in pod.get("status", {}).get("containerStatuses") or ()
            if (running := status.get("state", {}).get("running")) and running.get("startedAt")
        ]
        return min(times, default=0.0)

    def url_of(self, revision: KubernetesRevision) -> str:
        """Return a port of this machine's loopback that leads to its pods."""
        return door_to(self._api, revision.args.namespace, self.name, revision.name).url

    def address_here(self, revision: KubernetesRevision) -> str:
        """Return the address; outside of the cluster, where a Service has no name, its pods'."""
        has_name = self.args.gateway is not None or self._api.is_ours
        return self.address if has_name else self.url_of(revision)

    def probe_endpoint(self, revision: KubernetesRevision) -> tuple[str, dict[str, str]]:
        """Return the same: the address's name may mean nothing where this runs."""
        return self.url_of(revision), {}

    def stop(self, revision: KubernetesRevision) -> None:
        """Delete what it has, and wait until its last pod has ended. Raises Unavailable."""
        self._stop(revision.name, revision.args)

    def stop_named(self, revision_name: str) -> None:
        """Delete what a revision has of which only the name is known. Raises Unavailable."""
        self._stop(revision_name, self.args)

    def running(self) -> set[str]:
        """Return the revisions that have a Deployment. Raises Unavailable."""
        labels = names.target_selector(self.name)
        listed = self._api.find_all("Deployment", self.args.namespace, labels)
        return {revision_of(one) for one in listed if names.REVISION_LABEL in labels_of(one)}

    def route(self, shares: Sequence[Share[KubernetesRevision]]) -> None:
        """Have the HTTPRoute, or the Service, share out new requests so.

        Raises:
            BadInput: the address belongs to somebody else.
            Unavailable: the cluster or the gateway does not do it.
        """
        wanted = [(manifest, self._own(manifest)) for manifest in self._wanted(_weights(shares))]
        for manifest, live in wanted:
            if not contains(live or {}, manifest):
                self._api.apply(manifest)
        if self.args.gateway is not None:
            self._await_gateway()

    def is_routed(self, shares: Sequence[Share[KubernetesRevision]]) -> bool:
        """Whether the objects in the cluster say exactly that."""
        return all(
            contains(self._live(manifest) or {}, manifest)
            for manifest in self._wanted(_weights(shares))
        )

    def in_flight(self, revision: KubernetesRevision) -> int:
        """Return how many requests its pods are answering, as they say themselves."""
        return in_flight(self._pods(revision))

    def lacks_room(self, revision: KubernetesRevision) -> str:
        """Return that there is none for one replica more, where the recipe says so."""
        return (
            "" if revision.args.surge else "no replica more has room (deploy.target.surge: false)"
        )

    def traffic_figures(self, revision: KubernetesRevision) -> dict[str, float]:
        """Return what its pods counted of their clients."""
        return figures(self._pods(revision))

    def traffic(self) -> PodTraffic:
        """Return a reader of the requests that end at any of the pods from now on."""
        labels = names.target_selector(self.name)
        return PodTraffic(Pods(self._api, self.args.namespace, labels))

    # Parts of the above

    def _pods(self, revision: KubernetesRevision) -> Pods:
        return pods_of(self._api, revision.args.namespace, self.name, revision.name)

    def _all_pods(self) -> list[Object]:
        return self._api.find_all("Pod", self.args.namespace, names.target_selector(self.name))

    def _deployment(self, revision_name: str) -> Object | None:
        name = names.revision_name(self.name, revision_name)
        return self._api.find("Deployment", self.args.namespace, name)

    def _wanted(self, weights: Mapping[str, int]) -> list[Object]:
        return traffic_manifests(self.name, self.args, weights)

    def _live(self, manifest: Object) -> Object | None:
        return self._api.find(manifest["kind"], self.args.namespace, manifest["metadata"]["name"])

    def _own(self, manifest: Object) -> Object | None:
        """Return the address's object as it is; BadInput where it is somebody else's."""
        live, kind, name = self._live(manifest), manifest["kind"], manifest["metadata"]["name"]
        own = labels_of(manifest)
        if live is None:
            return None
        for label in (names.MANAGER_LABEL, names.INSTANCE_LABEL):
            if labels_of(live).get(label) != own[label]:
                raise BadInput(
                    f"taking the address of {self.name}",
                    f"there is a {kind} {name} in namespace {self.args.namespace} that is not ours",
                    "give the target another name, or remove it",
                )
        return live

    def _await_gateway(self) -> None:
        """Wait until the gateway has taken the route as it is now. Raises Unavailable."""
        deadline = time.monotonic() + ROUTE_SECONDS
        while problem := route_problem(self._api, self.name, self.args):
            if time.monotonic() > deadline:
                remedy = "see `kubectl describe httproute`, and that the gateway's class has a "
                raise Unavailable(f"routing {self.name}", problem, f"{remedy}controller")
            time.sleep(0.1)

    def _stop(self, revision_name: str, args: KubernetesArgs) -> None:
        # In this order: what scales a Deployment must not find it half gone.
        scaler = (args.autoscale.kind,) if args.autoscale else ()
        self._delete((*scaler, "Deployment"), revision_name, args)
        labels = names.revision_selector(self.name, revision_name)
        seconds = args.grace_seconds + KILL_SECONDS
        left = self._api.wait_until_gone("Pod", args.namespace, labels, seconds)
        for pod in left:
            node = pod.get("spec", {}).get("nodeName", "")
            logger.warning("%s still ends on node %s", pod_states.name_of(pod), node)
        self._delete(_DELETED_LAST, revision_name, args)
        forget(self._api, args.namespace, self.name, revision_name)

    def _delete(self, kinds: Sequence[str], revision_name: str, args: KubernetesArgs) -> None:
        name = names.revision_name(self.name, revision_name)
        for kind in kinds:
            self._api.delete(kind, args.namespace, name)


def _listed(pods: Pods, *, anew: bool = False) -> Sequence[pod_states.Pod]:
    """Return the pods; none where the cluster does not say: that is no fault of theirs."""
    try:
        return pods.listed(anew=anew)
    except Unavailable:
        return ()


def _weights(shares: Sequence[Share[KubernetesRevision]]) -> dict[str, int]:
    return {share.revision.name: share.weight for share in shares if not share.draining}
