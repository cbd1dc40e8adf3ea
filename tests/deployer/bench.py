"""A deployer over stand-ins of MLflow and of what is done at a target."""

import threading
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from tests.deployer.test_webhook_receiver import ALIAS
from weighbridge.core import loopback, own_secrets
from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.deployer.deployer import Deployer
from weighbridge.deployer.webhook_receiver import PATH
from weighbridge.flows.events import Announcement
from weighbridge.registry import Binding
from weighbridge.rollout.reconcile import ReconcileResult

DEMO = Binding(target="demo", model="demo", deploy={})
EDGE = Binding(target="edge", model="other", deploy={})


class Mlflow:
    """Stands in for the registry."""

    def __init__(self, *bindings: Binding) -> None:
        self.known_bindings = list(bindings)
        self.down = ""
        self.webhooks: list[tuple[str, str]] = []
        self.no_webhooks = ""

    def connect(self, _: Settings) -> Any:
        self._check(self.down)
        return self

    def join(self, doing: str) -> str:
        self._check(self.down)
        return doing

    def bindings(self) -> list[Binding]:
        self._check(self.down)
        return self.known_bindings

    def ensure_webhook(self, url: str, secret: str) -> None:
        self._check(self.no_webhooks)
        self.webhooks.append((url, secret))

    def _check(self, wrong: str) -> None:
        if wrong:
            raise Unavailable("asking MLflow", wrong)


NOTHING = ReconcileResult("nothing", "version 7 serves already", "7")


class Work:
    """Stands in for what is done at a target."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.recovered = 0
        self.held: dict[str, threading.Event] = {}
        self.wrong: dict[str, BaseException] = {}
        self.needed = False
        self.failure = 0.0
        self.forced: list[bool] = []
        self.at_work: set[str] = set()
        self.results: list[ReconcileResult] = []
        """What the next looks come to; then nothing is to be done."""

    def reconcile(
        self,
        binding: Binding,
        registry: Any,
        workspace: Workspace,
        trigger: str,
        *,
        force: bool = False,
    ) -> ReconcileResult:
        self.forced.append(force)
        assert binding.target not in self.at_work, "two at once at one target"
        self.at_work.add(binding.target)
        try:
            self.done.append((binding.target, trigger))
            if (gate := self.held.get(binding.target)) is not None:
                assert gate.wait(30)
            if error := self.wrong.pop(binding.target, None):
                raise error
            return self.results.pop(0) if self.results else NOTHING
        finally:
            self.at_work.discard(binding.target)

    def needs(
        self, binding: Binding, registry: Any, workspace: Workspace, *, force: bool = False
    ) -> bool:
        return self.needed

    def failed_at(self, binding: Binding, workspace: Workspace) -> float:
        return self.failure

    def recover(self, workspace: Workspace) -> None:
        self.recovered += 1


class Bench:
    """A deployer over stand-ins, its loop on a thread."""

    def __init__(self, home: Path, *bindings: Binding) -> None:
        self.home, self.mlflow, self.work = home, Mlflow(*bindings), Work()
        self.events: list[Announcement] = []
        settings = Settings(
            home=home, deployer_port=0, reconcile_seconds=3600, webhook_secret=SecretStr("s3cret")
        )
        self.deployer = Deployer(
            Workspace(settings),
            connect=self.mlflow.connect,
            reconciler=self.work,
            announce=self.events.append,
        )
        self._over = False
        self._thread = threading.Thread(target=self._loop)

    def start(self) -> "Bench":
        self.deployer.start()
        self.deployer.reconcile("start")
        self._thread.start()
        return self

    def deliver(self, **data: str) -> int:
        import json
        import uuid

        from weighbridge.deployer.webhook_receiver import signature

        body = json.dumps({**ALIAS, "data": {**ALIAS["data"], **data}}).encode()  # type: ignore[dict-item]
        id, now = uuid.uuid4().hex, str(int(time.time()))
        headers = {
            "X-MLflow-Delivery-Id": id,
            "X-MLflow-Timestamp": now,
            "X-MLflow-Signature": signature("s3cret", id, now, body),
        }
        return httpx.post(
            f"{self.deployer.url}{PATH}", content=body, headers=headers, trust_env=False
        ).status_code

    def get(self, path: str) -> Any:
        return loopback.get(f"{self.deployer.url}{path}").json()

    def looked_at(self, target: str) -> Any:
        """What its status says of a target."""
        return self.get("/status")["targets"].get(target, {})

    def wake(self, **call: str) -> None:
        headers = {"Authorization": f"Bearer {own_secrets.read(self.home, 'deployer')}"}
        url = f"{self.deployer.url}/wake"
        answer = httpx.post(url, json=call, headers=headers, trust_env=False)
        assert answer.status_code == 202

    def close(self) -> None:
        for gate in self.work.held.values():
            gate.set()
        self._over = True
        self.deployer.wake("", "end")
        if self._thread.is_alive():
            self._thread.join(20)
        self.deployer.stop()

    def _loop(self) -> None:
        while not self._over:
            self.deployer.wait_and_reconcile()
