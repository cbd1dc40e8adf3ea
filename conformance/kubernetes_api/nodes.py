"""Nodes of the stand-in, and pods on them: placed, pulled, started, looked at, ended."""

import itertools
import os
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from weighbridge.conformance.kubernetes_api.pods import Image, Process
from weighbridge.conformance.kubernetes_api.store import Key, Object, Refused, timestamp

if TYPE_CHECKING:
    from weighbridge.conformance.kubernetes_api.cluster import Cluster

LOOK: Final = 0.04
"""Seconds between two looks at a pod."""
RESTART_SECONDS: Final = 0.3
"""Until a container that ended is started again."""
_EXIT_CODES: Final = {"OOMKilled": 137}
_UNITS: Final = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", start=1)
}
_ADDRESSES = itertools.count(1)


def amount(quantity: str | int | float) -> float:
    """Return a quantity such as `500m` or `4Gi` as a number."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def requested(pod: Object) -> dict[str, float]:
    """Return what a pod asks for, by resource."""
    total: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        for name, quantity in container.get("resources", {}).get("requests", {}).items():
            total[name] = total.get(name, 0.0) + amount(quantity)
    return total


class PodRun(threading.Thread):
    """One pod from its creation to its end."""

    def __init__(self, cluster: "Cluster", key: Key) -> None:
        super().__init__(name=f"pod {key.name}", daemon=True)
        self.cluster, self.key = cluster, key
        self.process: Process | None = None
        self.previous: Process | None = None
        self._restarts = 0
        # Pods all listen at one port: those of another process need another network.
        process = os.getpid()
        network = f"127.{64 + process // 256 % 64}.{process % 256}"
        self.host = f"{network}.{next(_ADDRESSES) % 250 + 1}"

    def run(self) -> None:
        """Go through the pod's life."""
        try:
            self._live()
        except Refused:  # the pod was taken away, or the cluster closed
            pass
        finally:
            if self.process is not None:
                self.process.kill()

    def _live(self) -> None:
        if not (self._place() and self._pull()):
            self._forget()
            return
        while not self._is_ending():
            if self.process is None:
                self._start()
            self._look()
            time.sleep(LOOK)
        self._end()

    @property
    def _pod(self) -> Object:
        return self.cluster.store.get(self.key)

    @property
    def _container(self) -> Mapping[str, Any]:
        container: Mapping[str, Any] = self._pod["spec"]["containers"][0]
        return container

    def _is_ending(self) -> bool:
        return self.cluster.closed or "deletionTimestamp" in self._pod["metadata"]

    def _place(self) -> bool:
        """Find a node; return False where the pod is deleted before there is one."""
        told = ""
        while not self._is_ending():
            node, why = self.cluster.node_for(self._pod)
            if node:
                self._set({"spec": {"nodeName": node}})
                self._condition("PodScheduled", "True")
                return True
            if why != told:
                told = why
                self._condition("PodScheduled", "False", "Unschedulable", why)
                self.cluster.record_event(self.key, "FailedScheduling", why)
            time.sleep(LOOK)
        return False

    def _pull(self) -> bool:
        tries = 0
        while not self._is_ending():
            why = self._pull_problem()
            if not why:
                return True
            # kubelet tries again, less and less often, and says so in between.
            reason = "ImagePullBackOff" if tries else "ErrImagePull"
            self._container_status({"waiting": {"reason": reason, "message": why}}, ready=False)
            if not tries:
                self.cluster.record_event(self.key, "Failed", f"Failed to pull image: {why}")
            tries += 1
            time.sleep(10 * LOOK)
        return False

    def _pull_problem(self) -> str:
        name = self._container["image"]
        image = self.cluster.images.get(name)
        doing = f'failed to pull and unpack image "{name}"'
        if image is None:
            return f"{doing}: failed to resolve reference: {name}: not found"
        if image.private and not self._pod["spec"].get("imagePullSecrets"):
            return f"{doing}: failed to authorize: 401 Unauthorized"
        return image.pull_error

    def _start(self) -> None:
        container = self._container
        image: Image = self.cluster.images[container["image"]]
        port = next((p["containerPort"] for p in container.get("ports", ())), 8000)
        environment = {e["name"]: e.get("value", "") for e in container.get("env", ())}
        self.process = Process(image, (self.host, port), environment)
        self._set({"status": {"phase": "Running", "podIP": self.host, "startTime": timestamp()}})
        self._running = {"running": {"startedAt": timestamp()}}
        self._container_status(self._running, ready=False)

    def _look(self) -> None:
        process = self.process
        assert process is not None
        process.look()
        if process.exit_reason:
            self._restart(process)
            return
        probe = self._container.get("readinessProbe", {}).get("httpGet", {"path": "/readyz"})
        self._container_status(self._running, ready=process.probe(probe["path"]))

    def _restart(self, process: Process) -> None:
        ended = {
            "reason": process.exit_reason,
            "exitCode": _EXIT_CODES.get(process.exit_reason, 1),
            "finishedAt": timestamp(),
        }
        self._container_status({"terminated": ended}, ready=False)
        self.previous, self.process = process, None
        self._restarts += 1
        time.sleep(LOOK)
        why = f"back-off restarting failed container {self._container['name']}"
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": why}}
        self._container_status(waiting, ready=False, last={"terminated": ended})
        deadline = time.monotonic() + RESTART_SECONDS
        while time.monotonic() < deadline and not self._is_ending():
            time.sleep(LOOK)

    def _end(self) -> None:
        """Run preStop, then SIGTERM, then SIGKILL once the grace is over."""
        pod, process = self._pod, self.process
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 30)
        deadline = time.monotonic() + grace
        if process is not None:
            hook = threading.Thread(target=self._pre_stop, args=(process,), daemon=True)
            hook.start()
            hook.join(grace)
            process.terminate(max(deadline - time.monotonic(), 2.0))
        self._forget()

    def _pre_stop(self, process: Process) -> None:
        hook = self._container.get("lifecycle", {}).get("preStop", {})
        if "exec" in hook:
            process.run(hook["exec"]["command"], self.cluster.hurry)
        elif "sleep" in hook:
            time.sleep(hook["sleep"]["seconds"] / self.cluster.hurry)

    def _forget(self) -> None:
        if not self.cluster.closed:
            self.cluster.store.remove(self.key)

    def _container_status(
        self, state: Mapping[str, Any], *, ready: bool, last: Mapping[str, Any] | None = None
    ) -> None:
        container = self._container

        def change(pod: Object) -> None:
            status = pod.setdefault("status", {"phase": "Pending"})
            before = (status.get("containerStatuses") or [{}])[0]
            status["containerStatuses"] = [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": container["image"],
                    "ready": ready,
                    "restartCount": self._restarts,
                    "state": dict(state),
                    "lastState": dict(last or before.get("lastState", {})),
                }
            ]
            _put_condition(pod, "Ready", "True" if ready else "False")
            _put_condition(pod, "ContainersReady", "True" if ready else "False")

        self.cluster.store.change(self.key, change)

    def _condition(self, kind: str, status: str, reason: str = "", message: str = "") -> None:
        self.cluster.store.change(
            self.key, lambda pod: _put_condition(pod, kind, status, reason, message)
        )

    def _set(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        def change(pod: Object) -> None:
            for part, values in parts.items():
                pod.setdefault(part, {}).update(values)

        self.cluster.store.change(self.key, change)


def _put_condition(
    pod: Object, kind: str, status: str, reason: str = "", message: str = ""
) -> None:
    conditions = pod.setdefault("status", {"phase": "Pending"}).setdefault("conditions", [])
    condition = {"type": kind, "status": status, "reason": reason, "message": message}
    before = next((one for one in conditions if one["type"] == kind), None)
    if before is not None and {**before, **condition} == before:
        return
    conditions[:] = [one for one in conditions if one["type"] != kind]
    conditions.append({**condition, "lastTransitionTime": timestamp()})
