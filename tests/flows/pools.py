"""A work pool with a worker on a thread of the test, in Prefect's own API."""

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Crashed, Pending, Running

from weighbridge.flows import prefect_internals
from weighbridge.flows.stage import stage

Fate = Literal["runs", "crashes", "falls silent", "is not begun"]
TEMPLATE = {
    "job_configuration": {"command": "{{ command }}", "cpus": "{{ cpus }}"},
    "variables": {
        "properties": {"command": {"type": "string"}, "cpus": {"type": "integer"}},
        "type": "object",
    },
}


class Pool:
    """What became of the runs that were handed over, in the order in which they were begun."""

    def __init__(self, name: str, workers: int = 1) -> None:
        self.name = name
        self.fates: list[Fate] = []
        """Of the next runs; those after them run."""
        self.crash = "the pod was evicted"
        """What is said of those that crash."""
        self.runs: list[UUID] = []
        self.taken: list[float] = []
        """When each was taken, by the monotonic clock."""
        self.most_at_once = 0
        self.infrastructure = ""
        """What was made for a run, as a worker tells it."""
        self._at_once = 0
        self._workers = workers
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def make(self, worker: bool = True, kind: str = "process") -> None:
        with get_client(sync_client=True) as client:
            client.create_work_pool(
                WorkPoolCreate(name=self.name, type=kind, base_job_template=TEMPLATE)
            )
            if worker:
                client.send_worker_heartbeat(self.name, "worker", heartbeat_interval_seconds=30)

    @contextlib.contextmanager
    def working(self) -> Iterator["Pool"]:
        """Take runs within the block, as many at a time as there are workers."""
        self._ended.clear()
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)
            for _ in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(20)

    def _work(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._ended.wait(0.3):
                if run := self._next(client):
                    self._carry_out(run, client)

    def _next(self, client: SyncPrefectClient) -> UUID | None:
        with self._lock:
            for found in client.get_scheduled_flow_runs_for_work_pool(self.name):
                run = found.flow_run.id
                if run not in self.runs:
                    client.set_flow_run_state(run, Pending())
                    if self.infrastructure:
                        client.update_flow_run(run, infrastructure_pid=self.infrastructure)
                    self.runs.append(run)
                    self.taken.append(time.monotonic())
                    return run
        return None

    def _carry_out(self, run: UUID, client: SyncPrefectClient) -> None:
        fate = self.fates.pop(0) if self.fates else "runs"
        if fate == "crashes":
            client.set_flow_run_state(run, Crashed(message=self.crash), force=True)
        elif fate == "falls silent":
            client.set_flow_run_state(run, Running(), force=True)
        elif fate == "runs":
            with self._lock:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
            prefect_internals.carry_out(stage, run)
            with self._lock:
                self._at_once -= 1


def runs_of(flow: str) -> list[dict[str, Any]]:
    """Every flow run of a flow, the newest last."""
    path: Any = "/flow_runs/filter"
    with get_client(sync_client=True) as client:
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        found: list[dict[str, Any]] = client.request("POST", path, json=body).json()
    return found


def state_of(run: UUID) -> str:
    """The type of a run's state."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
    return state.type.value if state else ""
