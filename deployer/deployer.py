"""The deployer: a resident process that makes every target's actual state its desired state.

MLflow's webhook and `weighbridge promote` wake it; it reconciles every few seconds anyway, so that
every such call may be lost, doubled or out of order. Each target has a thread of its own
(`target_worker`). Prefect shows what the deployer does and decides nothing. While MLflow is down,
what serves is kept as it is.

Usage: ``python -m weighbridge.deployer.deployer``, started by `weighbridge up`.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import SecretStr

from weighbridge.core import own_secrets, service_addresses
from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.deployer.hosted_runs import HostedRuns
from weighbridge.deployer.mlflow_events import of_delivery
from weighbridge.deployer.target_worker import ROUTINE, TargetWorker
from weighbridge.deployer.watch import Watch
from weighbridge.deployer.webhook_receiver import (
    PATH,
    Callbacks,
    Delivery,
    Receiver,
    SeenDeliveries,
    application,
)
from weighbridge.flows.events import Announcer, rollout_ended
from weighbridge.flows.interrupted_runs import mark_crashed
from weighbridge.flows.prefect_settings import for_every_api, users_api
from weighbridge.flows.shadow_run import ShadowedJob, with_shadow_run
from weighbridge.registry import Binding, Registry
from weighbridge.registry.loading import load_mlflow
from weighbridge.registry.versions import is_misspelt_champion
from weighbridge.rollout import reconcile
from weighbridge.rollout.reconcile import ReconcileResult

# By its full name: run as a program, it is called `__main__`.
logger = logging.getLogger("weighbridge.deployer.deployer")

WEBHOOK_EVERY = 60.0
"""Seconds between two looks at our webhook in MLflow, which anybody there can change."""
_ALIAS = "champion"


class Reconciler(Protocol):
    """What is done at a target: the functions of `weighbridge.rollout.reconcile`."""

    def reconcile(
        self,
        binding: Binding,
        registry: Registry,
        workspace: Workspace,
        trigger: str,
        *,
        force: bool = False,
    ) -> ReconcileResult: ...

    def needs(
        self, binding: Binding, registry: Registry, workspace: Workspace, *, force: bool = False
    ) -> bool: ...

    def failed_at(self, binding: Binding, workspace: Workspace) -> float: ...

    def recover(self, workspace: Workspace) -> None: ...


class Deployer:
    """Reconciles every target, every few seconds and whenever it is woken."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        connect: Callable[[Settings], Registry] = Registry.connect,
        reconciler: Reconciler = reconcile,
        announce: Callable[[Any], None] | None = None,
    ) -> None:
        self._workspace = workspace
        self._settings = workspace.settings
        self._connect = connect
        self._reconciler = reconciler
        self._announce = announce or Announcer()
        self._registry: Registry | None = None
        self._server: Registry | None = None
        """MLflow's server, where the registry itself is reached as a database."""
        self._workers: dict[str, TargetWorker] = {}
        self._woken = threading.Event()
        self._trigger = ""
        """Of the wake-up call for all targets."""
        self._triggers: dict[str, str] = {}
        """Of the wake-up calls for one target, by its name."""
        self._began = time.time()
        self._mlflow: dict[str, Any] = {"answers": None, "detail": "not asked yet"}
        self._webhook: dict[str, Any] = {"set": False, "detail": "not set up yet"}
        self._webhook_due = 0.0
        seen = SeenDeliveries(self._settings.home / "run" / "deliveries.json")
        callbacks = Callbacks(self.take_delivery, self.wake, self.status, HostedRuns().begin)
        wake_token = SecretStr(own_secrets.ensure(self._settings.home, "deployer"))
        app = application(callbacks, self._settings.webhook_secret, wake_token, seen)
        self._receiver = Receiver(app, self._settings.deployer_port)
        self._watch = Watch(workspace)

    @property
    def url(self) -> str:
        return self._receiver.url

    @property
    def tag(self) -> str:
        """The tag on every flow run of this installation's deployer."""
        home = service_addresses.home_mark(self._settings.home)
        return f"deployer-{socket.gethostname()}-{home}"

    def start(self) -> None:
        """Listen, and settle what a killed deployer left behind. Needs no MLflow."""
        self._receiver.start()
        self._recover()
        self._watch.start()

    def stop(self) -> None:
        """Listen and reconcile no more; what is under way goes on until it ends, or the process
        does.
        """
        self._receiver.stop()
        self._watch.stop()
        for worker in self._workers.values():
            worker.stop()

    def wait_and_reconcile(self) -> None:
        """Wait for the next wake-up call, or for the time of the routine look, then reconcile."""
        self._woken.wait(self._settings.reconcile_seconds)
        # Cleared before the look: a call that comes while it goes on is one more look.
        self._woken.clear()
        trigger, self._trigger = self._trigger or ROUTINE, ""
        self.reconcile(trigger)

    def take_delivery(self, delivery: Delivery) -> None:
        """Tell Prefect of a webhook of MLflow's, and wake up where it is about our alias."""
        self._announce(of_delivery(delivery))
        alias = str(delivery.data.get("alias") or "")
        # One that was meant as ours wakes it too: it says there, and in its state, what it is not.
        if alias != _ALIAS and not is_misspelt_champion(alias):
            return
        model = delivery.data.get("name")
        # A copy: this is the receiver's thread, and another one changes the workers.
        targets = [
            name for name, worker in list(self._workers.items()) if worker.binding.model == model
        ]
        # What somebody asked for is told as that, though MLflow tells of it as well.
        for name in targets:
            self._triggers.setdefault(name, "webhook")
        self._woken.set()

    def wake(self, target: str, trigger: str) -> None:
        """Have a target (empty: every one) reconciled now."""
        if target:
            self._triggers[target] = trigger
        else:
            self._trigger = trigger
        self._woken.set()

    def reconcile(self, trigger: str = ROUTINE) -> None:
        """Ask MLflow which targets there are, then have each of them reconciled on its thread."""
        try:
            self._registry = self._registry or self._joined()
            bindings = self._registry.bindings()
        # OSError: a disk is full, and MLflow's client can't write either.
        except (WeighbridgeError, OSError) as exc:
            self._go_on_without_mlflow(str(exc))
            return
        if not self._mlflow["answers"]:
            logger.info("MLflow answers")
        self._mlflow = {"answers": True, "detail": "", "at": time.time()}
        self._update_workers(bindings)
        for name, worker in list(self._workers.items()):
            worker.request(self._triggers.pop(name, trigger))
        self._ensure_webhook()

    def status(self) -> dict[str, Any]:
        """Return how it and every target is, as JSON."""
        return {
            "home": service_addresses.home_mark(self._settings.home),
            "since": self._began,
            "mlflow": self._mlflow,
            "webhook": self._webhook,
            "prefect": users_api() or "",
            "targets": {name: worker.status() for name, worker in list(self._workers.items())},
        }

    def _update_workers(self, bindings: list[Binding]) -> None:
        """Have one worker for each binding."""
        wanted = {binding.target: binding for binding in bindings}
        for name in self._workers.keys() - wanted.keys():
            self._workers.pop(name).stop()
        for name, binding in wanted.items():
            worker = self._workers.get(name)
            if worker is None:
                self._workers[name] = TargetWorker(
                    binding, self._reconcile_target, self._announce_result
                )
            else:
                worker.binding = binding

    def _reconcile_target(self, binding: Binding, trigger: str, asked_at: float) -> ReconcileResult:
        """Reconcile one target, with a flow run beside it where there is something to do."""
        registry = self._registry
        if registry is None:
            raise Unavailable(f"reconciling '{binding.target}'", "MLflow does not answer")

        # Whoever asks again for what failed wants it tried again; a call that came while it was
        # tried does not.
        force = asked_at > self._reconciler.failed_at(binding, self._workspace)

        def work() -> ReconcileResult:
            return self._reconciler.reconcile(
                binding, registry, self._workspace, trigger, force=force
            )

        if not self._reconciler.needs(binding, registry, self._workspace, force=force):
            return work()
        job: ShadowedJob[ReconcileResult] = ShadowedJob(binding.target, trigger)
        return with_shadow_run(job, work, _state_of, frozenset({"weighbridge", self.tag}))

    def _announce_result(self, binding: Binding, result: ReconcileResult) -> None:
        """Tell Prefect how a rollout ended, for automations that tell people."""
        failed = "taken-back" if result.is_taken_back else "failed"
        outcome = {"deployed": "served", "failed": failed}.get(result.action, result.action)
        self._announce(
            rollout_ended(
                binding.target, binding.model, result.tried, result.version, outcome, result.detail
            )
        )

    def _go_on_without_mlflow(self, why: str) -> None:
        """Note that MLflow is away, and settle what a target without a rollout needs settled."""
        if self._mlflow["answers"] is not False:
            logger.warning("what serves goes on without MLflow: %s", why)
        self._mlflow = {"answers": False, "detail": why, "at": time.time()}
        self._registry = None
        # A worker at a rollout knows better than a look from outside what its target needs.
        if not any(worker.busy for worker in self._workers.values()):
            self._recover()

    def _joined(self) -> Registry:
        """Connect to MLflow as one of the homes that work with it."""
        registry = self._connect(self._settings)
        registry.join("deploying")
        return registry

    def _recover(self) -> None:
        try:
            self._reconciler.recover(self._workspace)
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
            webhook = {"set": True, "detail": f"to {self.url}{PATH}"}
        except WeighbridgeError as exc:
            self._server, webhook = None, {"set": False, "detail": str(exc)}
            # Not in a minute but at the next look: MLflow's server may only be starting.
            self._webhook_due = 0.0
        if webhook != self._webhook:
            level = logging.INFO if webhook["set"] else logging.WARNING
            logger.log(level, "webhook: %s", webhook["detail"])
        self._webhook = webhook


def _through_the_server(settings: Settings) -> Settings:
    """Return the settings with the address of MLflow's server, even where all others open the
    database: webhooks belong to the server, which holds the key that their secrets are kept under.
    """
    uri = settings.tracking_uri or f"http://127.0.0.1:{settings.mlflow_port}"
    return settings.model_copy(update={"tracking_uri": uri})


def _state_of(result: ReconcileResult) -> Any:
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
    """End at once: whatever is under way is settled at the next start, as after a power cut."""
    logger.info("ended by %s", signal.Signals(number).name)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(0)


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    thread = args.thread.name if args.thread else "a thread"
    logger.error("%s died", thread, exc_info=args.exc_value)


def main() -> int:
    """Run until a signal ends the process; returns an exit code where it cannot start."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(threadName)s: %(message)s"
    )
    logging.getLogger("weighbridge").setLevel(logging.INFO)
    threading.excepthook = _log_thread_error
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    workspace = Workspace()
    try:
        deployer = Deployer(workspace)
    except WeighbridgeError as exc:
        logger.error("%s", exc)
        return exc.exit_code
    # After the port is taken: a second deployer ends before it imports MLflow for seconds.
    _prepare(workspace.settings)
    deployer.start()
    logger.info("listening at %s", deployer.url)
    if users_api():
        threading.Thread(target=mark_crashed, args=(deployer.tag, time.time()), daemon=True).start()
    deployer.reconcile("start")
    while True:
        deployer.wait_and_reconcile()


if __name__ == "__main__":
    sys.exit(main())
