"""The deployer: resident, makes every target's fact equal its wish.

MLflow's webhook and `weighbridge promote` wake it; it reconciles every few seconds anyway, so that
every hint may be lost, doubled or out of order. Each target is attended on a thread of its own.
Prefect shows what it does and decides nothing; while MLflow is down, what serves is kept right.

Usage: ``python -m weighbridge.deployer.deployer``, started by `weighbridge up`.
"""

import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.deployer.mlflow_events import of_delivery
from weighbridge.deployer.webhook_receiver import (
    PATH,
    Delivery,
    Hooks,
    Receiver,
    SeenDeliveries,
    application,
)
from weighbridge.flows.events import Announcer
from weighbridge.flows.interrupted_runs import mark_crashed
from weighbridge.flows.prefect_settings import for_every_api, users_api
from weighbridge.flows.shadow_run import ShadowedJob, accompanied
from weighbridge.registry import Binding, Registry
from weighbridge.registry.loading import load_mlflow
from weighbridge.rollout import reconcile
from weighbridge.rollout.reconcile import Result

logger = logging.getLogger("weighbridge.deployer")

WEBHOOK_EVERY = 60.0
RECONCILE = "reconcile"
PEOPLE = frozenset({"webhook", "promote", "rollback"})
"""Triggers behind which somebody moved, or confirmed, the alias."""
_ALIAS = "champion"


class Reconciler(Protocol):
    """What is done at a target: `weighbridge.rollout.reconcile`."""

    def reconcile(
        self,
        binding: Binding,
        registry: Registry,
        workspace: Workspace,
        trigger: str,
        *,
        force: bool = False,
    ) -> Result: ...

    def needs(
        self, binding: Binding, registry: Registry, workspace: Workspace, *, force: bool = False
    ) -> bool: ...

    def failed_at(self, binding: Binding, workspace: Workspace) -> float: ...

    def recover(self, workspace: Workspace) -> None: ...


class TargetWorker:
    """One target and the thread that attends it: one thing at a time, the newest wish next."""

    def __init__(self, binding: Binding, attend: Callable[[Binding, str, float], Result]) -> None:
        self.binding = binding
        self._attend = attend
        self._asked = threading.Event()
        self._over = False
        self._trigger = ""
        self._asked_at = 0.0
        self._began = 0.0
        self._last: dict[str, Any] = {}
        self._thread = threading.Thread(
            target=self._run, name=f"target {binding.target}", daemon=True
        )
        self._thread.start()

    def ask(self, trigger: str) -> None:
        """Look at the target soon; asked several times before that, once. A reason is worth more
        than routine.
        """
        if trigger != RECONCILE or not self._trigger:
            self._trigger = trigger
        if trigger in PEOPLE:
            self._asked_at = time.time()
        self._asked.set()

    def end(self) -> None:
        """Attend it no more, once what is under way is over."""
        self._over = True
        self._asked.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> bool:
        return bool(self._began)

    def status(self) -> dict[str, Any]:
        return {"model": self.binding.model, "busy_since": self._began or None, **self._last}

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._over:
                return
            trigger, self._trigger = self._trigger or RECONCILE, ""
            self._began = time.time()
            try:
                self._look(trigger)
            finally:
                self._began = 0.0

    def _look(self, trigger: str) -> None:
        try:
            result = self._attend(self.binding, trigger, self._asked_at)
            told = {"action": result.action, "detail": result.detail, "version": result.version}
        except WeighbridgeError as exc:
            told = {"action": "error", "detail": str(exc), "version": self._last.get("version", "")}
        before = (self._last.get("action"), self._last.get("detail"))
        if told["action"] != "nothing" and before != (told["action"], told["detail"]):
            logger.info("%s: %s: %s", self.binding.target, told["action"], told["detail"])
        self._last = {**told, "trigger": trigger, "at": time.time()}


class Deployer:
    """Reconciles every target, now and again and whenever it is woken."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        connect: Callable[[Settings], Registry] = Registry.connect,
        work: Reconciler = reconcile,
        announce: Callable[[Any], None] | None = None,
    ) -> None:
        self._workspace = workspace
        self._settings = workspace.settings
        self._connect = connect
        self._work = work
        self._announce = announce or Announcer()
        self._registry: Registry | None = None
        self._server: Registry | None = None
        self._workers: dict[str, TargetWorker] = {}
        self._woken = threading.Event()
        self._trigger = ""
        self._triggers: dict[str, str] = {}
        """By target, of whoever woke it."""
        self._began = time.time()
        self._mlflow: dict[str, Any] = {"answers": None, "detail": "not asked yet"}
        self._webhook: dict[str, Any] = {"set": False, "detail": "not set up yet"}
        self._webhook_due = 0.0
        seen = SeenDeliveries(self._settings.home / "run" / "deliveries.json")
        app = application(
            Hooks(self.told, self.wake, self.status), self._settings.webhook_secret, seen
        )
        self._receiver = Receiver(app, self._settings.deployer_port)

    @property
    def url(self) -> str:
        return self._receiver.url

    def start(self) -> None:
        """Listen, and settle what a killed deployer left behind. Needs no MLflow."""
        self._receiver.start()
        self._recover()

    def stop(self) -> None:
        """Listen and attend no more; what is under way goes on until it ends, or the process does."""
        self._receiver.stop()
        for worker in self._workers.values():
            worker.end()

    def turn(self) -> None:
        """Wait for the next wake-up call, or for the time to look anyway, then reconcile."""
        self._woken.wait(self._settings.reconcile_seconds)
        self._woken.clear()
        trigger, self._trigger = self._trigger or RECONCILE, ""
        self.reconcile(trigger)

    def told(self, delivery: Delivery) -> None:
        """MLflow says that an alias moved."""
        self._announce(of_delivery(delivery))
        if delivery.data.get("alias") == _ALIAS:
            model = delivery.data.get("name")
            targets = [
                name
                for name, worker in list(self._workers.items())
                if worker.binding.model == model
            ]
            self._triggers |= dict.fromkeys(targets, "webhook")
            self._woken.set()

    def wake(self, target: str, trigger: str) -> None:
        """Somebody wants a target (empty: all) to be looked at now."""
        if target:
            self._triggers[target] = trigger
        else:
            self._trigger = trigger
        self._woken.set()

    def reconcile(self, trigger: str = RECONCILE) -> None:
        """Ask MLflow which targets there are, and with what arguments; then have each attended."""
        try:
            self._registry = self._registry or self._connect(self._settings)
            bindings = self._registry.bindings()
        except WeighbridgeError as exc:
            self._without_mlflow(str(exc))
            return
        if not self._mlflow["answers"]:
            logger.info("MLflow answers")
        self._mlflow = {"answers": True, "detail": "", "at": time.time()}
        self._man(bindings)
        for name, worker in list(self._workers.items()):
            worker.ask(self._triggers.pop(name, trigger))
        self._ensure_webhook()

    def status(self) -> dict[str, Any]:
        """How it is, as JSON."""
        return {
            "since": self._began,
            "mlflow": self._mlflow,
            "webhook": self._webhook,
            "prefect": users_api() or "",
            "targets": {name: worker.status() for name, worker in list(self._workers.items())},
        }

    def _man(self, bindings: list[Binding]) -> None:
        """A post for each place; one whose thread died of an error is manned again."""
        wanted = {binding.target: binding for binding in bindings}
        for name in self._workers.keys() - wanted.keys():
            self._workers.pop(name).end()
        for name, binding in wanted.items():
            worker = self._workers.get(name)
            if worker is None or not worker.alive:
                self._workers[name] = TargetWorker(binding, self._attend)
            else:
                worker.binding = binding

    def _attend(self, binding: Binding, trigger: str, asked_at: float) -> Result:
        registry = self._registry
        if registry is None:
            raise Unavailable(f"attending '{binding.target}'", "MLflow does not answer")

        # Whoever asks again for what failed wants it tried again; a hint that came while it was
        # tried does not.
        force = asked_at > self._work.failed_at(binding, self._workspace)

        def work() -> Result:
            return self._work.reconcile(binding, registry, self._workspace, trigger, force=force)

        if not self._work.needs(binding, registry, self._workspace, force=force):
            return work()
        job: ShadowedJob[Result] = ShadowedJob(binding.target, trigger)
        return accompanied(job, work, _state_of, frozenset({"weighbridge", self.tag}))

    @property
    def tag(self) -> str:
        """On every flow run of this installation's deployer."""
        home = hashlib.sha256(str(self._settings.home).encode()).hexdigest()[:8]
        return f"deployer-{socket.gethostname()}-{home}"

    def _without_mlflow(self, why: str) -> None:
        """What serves goes on; a target that nobody attends just now is kept right."""
        if self._mlflow["answers"] is not False:
            logger.warning("MLflow does not answer, what serves goes on: %s", why)
        self._mlflow = {"answers": False, "detail": why, "at": time.time()}
        self._registry = None
        if not any(worker.busy for worker in self._workers.values()):
            self._recover()

    def _recover(self) -> None:
        try:
            self._work.recover(self._workspace)
        except WeighbridgeError as exc:
            logger.warning("%s", exc)

    def _ensure_webhook(self) -> None:
        if time.monotonic() < self._webhook_due:
            return
        self._webhook_due = time.monotonic() + WEBHOOK_EVERY
        secret = self._settings.webhook_secret.get_secret_value()
        if not secret:
            self._webhook = {"set": False, "detail": "WEIGHBRIDGE_WEBHOOK_SECRET is not set"}
            return
        try:
            self._server = self._server or self._connect(_through_the_server(self._settings))
            self._server.ensure_webhook(f"{self.url}{PATH}", secret)
            told = {"set": True, "detail": f"to {self.url}{PATH}"}
        except WeighbridgeError as exc:
            self._server, told = None, {"set": False, "detail": str(exc)}
            self._webhook_due = 0.0
        if told != self._webhook:
            logger.log(
                logging.INFO if told["set"] else logging.WARNING, "webhook: %s", told["detail"]
            )
        self._webhook = told


def _through_the_server(settings: Settings) -> Settings:
    """Webhooks belong to MLflow's server, which holds the key that their secrets are kept under."""
    uri = settings.tracking_uri or f"http://127.0.0.1:{settings.mlflow_port}"
    return settings.model_copy(update={"tracking_uri": uri})


def _state_of(result: Result) -> Any:
    from weighbridge.flows.redeploy import state_of

    return state_of(result)


def _prepare(settings: Settings) -> None:
    """Set what MLflow and Prefect read when they are imported, then import MLflow: that takes
    seconds.
    """
    # MLflow's client would try for minutes what is tried again in a few seconds anyway.
    for name, value in {"TIMEOUT": "20", "MAX_RETRIES": "1", "BACKOFF_FACTOR": "1"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    for name, value in for_every_api().items():
        os.environ.setdefault(name, value)
    load_mlflow(fast=settings.fast_start)


def _end(number: int, frame: object) -> None:
    """At once: whatever is under way is settled at the next start, as after a power cut."""
    logger.info("ended by %s", signal.Signals(number).name)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(0)


def _say_thread_error(args: threading.ExceptHookArgs) -> None:
    thread = args.thread.name if args.thread else "a thread"
    logger.error("%s died", thread, exc_info=args.exc_value)


def main() -> int:
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(threadName)s: %(message)s"
    )
    logging.getLogger("weighbridge").setLevel(logging.INFO)
    threading.excepthook = _say_thread_error
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    workspace = Workspace()
    try:
        deployer = Deployer(workspace)
    except WeighbridgeError as exc:
        logger.error("%s", exc)
        return exc.exit_code
    _prepare(workspace.settings)
    deployer.start()
    logger.info("listening at %s", deployer.url)
    if users_api():
        threading.Thread(target=mark_crashed, args=(deployer.tag, time.time()), daemon=True).start()
    deployer.reconcile("start")
    while True:
        deployer.turn()


if __name__ == "__main__":
    sys.exit(main())
