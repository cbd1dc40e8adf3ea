"""A target `shop` in a cluster, the stand-in or a real one (real.py), and clients that ask it."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import real
from tests.cluster.real import RealCluster
from tests.rollout.rollouts import FakeRegistry, Shop
from tests.waiting import until
from weighbridge.conformance.kubernetes_api.cluster import NAMESPACE, Cluster
from weighbridge.conformance.kubernetes_api.pods import Image
from weighbridge.conformance.kubernetes_api.store import Key
from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding
from weighbridge.rollout import probe, rollout
from weighbridge.rollout.outbox import Outbox
from weighbridge.rollout.probe import ProbeAnswer, ProbeQuestion
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.serving.targets.base import Release
from weighbridge.serving.targets.kubernetes import api, reach, records, requests_seen
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.target import Kubernetes
from weighbridge.serving.targets.shared_records import SharedRecords

GOOD = Image(token_seconds=0.1)
IMAGES = {
    "registry/demo:1": GOOD,
    "registry/demo:2": GOOD,
    "registry/demo:3": GOOD,
    "registry/demo:dies": Image(crash="OOMKilled", last_words="loading 4096 tensors"),
    "registry/demo:private": Image(private=True),
}
QUESTIONS = [
    ProbeQuestion(prompt=f"q{n}", reference="one", answer="one", scores={"exact_match": 1.0})
    for n in range(4)
]
LAG = 0.3
"""Seconds until clients of the stand-in learn of a change; `endpoints_lag` comes to half of one."""


def release(version: str) -> Release:
    return Release(
        name="demo", version=version, bento=f"demo:{version}", digest=f"sha256:{version * 64:.64}"
    )


class Killed(BaseException):
    """The process that rolls out is killed here."""


@dataclass
class Lab(Shop):
    """A target `shop` in a cluster of the test's own."""

    cluster: Any
    """`StandIn`, or `RealCluster`."""
    workspace: Workspace
    policy: dict[str, Any] = field(default_factory=dict)
    deploy: dict[str, Any] = field(default_factory=dict)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    _dead: list[api.Api] = field(default_factory=list)

    @property
    def target_args(self) -> dict[str, Any]:
        quick = {"endpoints_lag": 5, "drain_seconds": 20, "stop_seconds": 5}
        small = {"cpu": "100m", "memory": "64Mi", "disk": "64Mi"}
        own: dict[str, Any] = {
            "namespace": NAMESPACE,
            "image": "registry/demo:{version}",
            "resources": small,
        }
        if isinstance(self.cluster, RealCluster):
            # What clients come through is for a test to say (`behind`).
            own = {**real.target_args(), "gateway": None}
        return {"kind": "kubernetes", **quick, **own, **self.deploy}

    def behind(self, address: str) -> None:
        """Have clients come through a gateway, or to the Service alone."""
        self.deploy["gateway"] = None
        if address == "gateway":
            self.deploy["gateway"] = gateway = self.cluster.any_gateway()
            self.cluster.gateway = gateway
            self.policy["steps"] = (20, 100)

    @property
    def target(self) -> Kubernetes:
        args = KubernetesArgs.model_validate(self.target_args)
        return Kubernetes("shop", args, self.workspace.settings.home)

    @property
    def binding(self) -> Binding:
        quick = {
            "step_seconds": 0,
            "step_deadline": 10,
            "start_deadline": 20,
            "min_requests": 3,
            "questions": 4,
            "drain_seconds": 20,
            "exclude_harm": "never",
        }
        deploy = {"name": "shop", "target": self.target_args, "rollout": {**quick, **self.policy}}
        return Binding(target="shop", model="demo", deploy=deploy)

    @contextlib.contextmanager
    def killed_at(self, phase: str) -> Iterator[None]:
        """The process dies once this line is in the ledger; nothing of it reaches the cluster
        afterwards, not even that it gives its lock back.
        """
        mine, write = api.connect(), Outbox.write

        def killing(outbox: Outbox, rollout: str, event: str, **fields: Any) -> None:
            write(outbox, rollout, event, **fields)
            if event == phase:
                self._dead.append(mine)
                raise Killed(phase)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Outbox, "write", killing)
            yield

    def let_processes_die(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have nothing of a dead process reach the cluster: threads of it go on."""
        serialized = api.Api._serialized

        def refusing(asked: api.Api, *args: Any) -> Any:
            if asked in self._dead:
                raise Unavailable("asking the cluster", "this process is dead")
            return serialized(asked, *args)

        monkeypatch.setattr(api.Api, "_serialized", refusing)

    def move_to(self, home: Path) -> None:
        """Go on as a process of another machine, with an empty home, once the lease is over."""
        api._connected.cache_clear()
        self.cluster.lose_lease()
        self.workspace = Workspace(Settings(home=home))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The fields of the ledger's lines of this event."""
        return [entry.fields for entry in self.registry.ledger if entry.event == name]

    def serving(self) -> set[str]:
        """The revisions whose pods are there."""
        return {pod["metadata"]["labels"]["weighbridge/revision"] for pod in self.cluster.pods()}


class StandIn(Cluster):
    """The stand-in, as clients see it that learn of its changes late."""

    def stream(self, body: bytes) -> tuple[str, int, bytes]:
        """Ask the address for a stream; return who answered, the status and the whole answer."""
        backend = self.backend("shop", LAG)
        if backend is None:
            raise ConnectionRefusedError("there is no endpoint")
        connection = http.client.HTTPConnection(*backend, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            revision = response.headers["X-Weighbridge-Version"]
            return revision, response.status, response.read()

    def any_gateway(self) -> dict[str, Any]:
        """A gateway that takes routes."""
        self.add_gateway("edge")
        return {"name": "edge", "hostname": "models.example.com"}

    def lose_lease(self) -> None:
        """Have the lock be free, as it is once the lease of a dead process is over."""
        self.store.remove(Key("coordination.k8s.io", "leases", NAMESPACE, "shop-records"))


@contextlib.contextmanager
def lab(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: Any
) -> Iterator[Lab]:
    """The stand-in with two nodes, where looks and waits are short."""
    options = {"nodes": {"node-1": {}, "node-2": {}}, "gateway_api": True, "hurry": 10.0, **options}
    with StandIn(IMAGES, **options) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        for module in (api, records):
            monkeypatch.setattr(module, "TRIES", (0.05, 0.1, 0.2, 0.2))
        for quick in (reach, requests_seen):
            monkeypatch.setattr(quick, "_LOOK_SECONDS", 0.1)
        monkeypatch.setattr(SharedRecords, "GLANCE", 0.2)
        monkeypatch.setattr(rollout, "POLL", 0.02)
        judge_little(monkeypatch)
        shop = Lab(cluster, workspace)
        shop.let_processes_die(monkeypatch)
        yield shop


@contextlib.contextmanager
def real_lab(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A real cluster; the test is skipped where there is none."""
    if why := real.why_not():
        pytest.skip(why)
    judge_little(monkeypatch)
    with real.real_cluster() as cluster:
        shop = Lab(cluster, workspace, policy={"start_deadline": 900, "step_deadline": 120})
        shop.let_processes_die(monkeypatch)
        yield shop


def judge_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any answer for right: the metrics take seconds to load."""
    monkeypatch.setattr(probe, "questions_of", lambda measured, store, count: QUESTIONS[:count])
    monkeypatch.setattr(probe, "judge", _judge)


def _judge(answered: list[ProbeAnswer], measurement: object, **policy: object) -> Judgement:
    wrong = [one.problem for one in answered if one.problem]
    return Judgement(verdict="fail" if wrong else "pass", why=" ".join(wrong), evidence={})


@dataclass
class Clients:
    """Clients that stream answers without a pause."""

    cluster: Any
    count: int = 4
    words: int = 64
    whole: list[str] = field(default_factory=list)
    """Which revision gave each whole answer."""
    failed: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def __enter__(self) -> "Clients":
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def until_served_by(self, revision: str, answers: int = 4) -> None:
        """Wait until the newest answers are all of one revision."""
        until(
            lambda: self.whole[-answers:] == [revision] * answers,
            otherwise=lambda: f"{self.whole[-9:]} {self.failed[-3:]} {self.cut[-3:]}",
        )

    def begin(self, revision: str) -> None:
        """Wait until they have learned of a first revision, and count from then on."""
        self.until_served_by(revision)
        self.failed.clear()

    def _go_on(self) -> None:
        messages = [{"role": "user", "content": "Count to a hundred."}]
        body = json.dumps({"stream": True, "max_tokens": self.words, "messages": messages}).encode()
        while not self._over.is_set():
            self._ask(body)

    def _ask(self, body: bytes) -> None:
        try:
            revision, status, content = self.cluster.stream(body)
        except (ConnectionError, Unavailable) as exc:
            self.failed.append(str(exc))
            time.sleep(0.05)
        # An answer that breaks off says so in as many ways as there are libraries.
        except Exception as exc:
            self.cut.append(repr(exc))
        else:
            self._take(revision, status, content)

    def _take(self, revision: str, status: int, content: bytes) -> None:
        if status != 200:
            self.failed.append(f"{revision}: {status}")
        elif not content.rstrip().endswith(b"data: [DONE]"):
            self.cut.append(revision)
        else:
            self.whole.append(revision)


def in_thread(act: Callable[[], object]) -> threading.Thread:
    """Do something meanwhile."""
    thread = threading.Thread(target=act)
    thread.start()
    return thread
