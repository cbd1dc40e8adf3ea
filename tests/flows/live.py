"""A machine that is up: real Prefect, MLflow, deployer, haproxy, and a target whose versions are as
one wants them.
"""

import contextlib
import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tests.serving.bentos import stand_in_release
from tests.tasks.made import exact, measured
from tests.waiting import until
from weighbridge.core import loopback, service_addresses
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.flows import prefect_settings
from weighbridge.registry import Binding, Registry
from weighbridge.registry.ledger import RolloutRecord
from weighbridge.registry.versions import CANDIDATE
from weighbridge.rollout.champion import BENTO, BENTO_DIGEST
from weighbridge.rollout.deploy_args import read_deploy_args
from weighbridge.rollout.managed_target import ManagedTarget, open_target
from weighbridge.rollout.state import TargetState
from weighbridge.services.platform import Platform
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.supervisor import Supervisor

KNOWN = {f"question {number}": f"answer {number}" for number in range(16)}
POLICY = {
    "step_seconds": 1,
    "step_deadline": 30,
    "probe_deadline": 30,
    "start_deadline": 90,
    "min_requests": 20,
    # To exclude harm takes more answers than there is time for here.
    "exclude_harm": "never",
    "max_latency_ratio": 2,
    "warm_up": 0,
    "questions": 8,
    "drain_seconds": 60,
    "memory_reserve": 0,
}
LABEL = "llama_cpp/gguf-Q8_0"
MODEL = "shop"
GOOD = ("1", "2")
LONG = 50
"""Words of an answer to anything but the known questions: three seconds of a stream."""
WORD_SECONDS = 0.06
"""A shorter time for more words would only be work for client, gateway, proxy and stand-in."""
SELDOM = 0.2
"""Seconds between two looks at what takes seconds to come: services have a processor to share."""


class Live:
    """Model `shop`, served at target `shop`; its versions are stand-ins that stream slowly, or are
    bad on purpose.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = settings.home
        self.workspace = Workspace(settings)
        self.platform = Platform(settings)
        self.registry = Registry.connect(settings)
        self.host = Supervisor(self.home)
        self.port = free_port()
        self._run = self.registry.release("shop", 1, params={}, tags={"recipe": "shop"})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> TargetState[Any]:
        managed = open_target(MODEL, self.workspace)
        return managed.load_state() if managed else TargetState()

    @property
    def good(self) -> str:
        """The one of the two good versions that serves; the first where neither does."""
        current = self.state.current
        return current.release.version if current and current.release.version in GOOD else GOOD[0]

    @property
    def other(self) -> str:
        """The other one."""
        return GOOD[1 - GOOD.index(self.good)]

    def claim(self, **policy: Any) -> None:
        """Let the target serve the model, with this policy of rollouts."""
        self.registry.bind(self._binding({}, policy))

    def keep_address(self, **gateway: Any) -> None:
        """Have the gateway treat clients like this, as a release does that rolls nothing out."""
        binding = self._binding(gateway, {})
        args = read_deploy_args(MODEL, binding.deploy)
        since = ManagedTarget(MODEL, args, self.workspace).put_in_force()
        self.registry.bind(binding.model_copy(update={"since": since}))

    def _binding(self, gateway: dict[str, Any], policy: dict[str, Any]) -> Binding:
        target = {"kind": "local", "port": self.port, "stop_seconds": 5, "gateway": gateway}
        deploy = {"name": MODEL, "target": target, "rollout": {**POLICY, **policy}}
        return Binding(target=MODEL, model=MODEL, deploy=deploy)

    def add(self, *, peak_memory: int = 256 << 20, **faults: Any) -> str:
        """Register another version, weighed as one that knows every answer; its number."""
        number = (
            str(len(self.registry.versions(MODEL)) + 1) if MODEL in self.registry.names() else "1"
        )
        with self.workspace.store.scratch() as scratch:
            rows = [
                {
                    "prompt": asked,
                    "reference": answer,
                    "answer": answer,
                    "scores": {"exact_match": 1.0},
                    "version": number,
                }
                for asked, answer in KNOWN.items()
            ]
            (scratch / "validation.jsonl").write_text(
                "".join(f"{json.dumps(row)}\n" for row in rows)
            )
            rows_artifact = self.workspace.store.add(scratch, "jsonl")
        version = self.registry.register(
            MODEL, "variant", rows_artifact, run=self._run, label="gguf-Q8_0"
        )
        assert version.version == number
        document = measured("gguf-Q8_0").model_copy(
            update={
                "scores": {"exact_match": exact(200)},
                "predictions": rows_artifact,
                "peak_memory": peak_memory,
                "max_new_tokens": 16,
            }
        )
        self.registry.record_measurement(
            version, LABEL, run=self._run, document=document.model_dump_json(), figures=[]
        )
        faults = {
            "default": f"version {number}" + " more" * LONG,
            "token_delay": WORD_SECONDS,
            **faults,
        }
        release = stand_in_release(self.workspace, number, name=MODEL, answers=KNOWN, **faults)
        self.registry.tag(
            version, {CANDIDATE: LABEL, BENTO: release.bento, BENTO_DIGEST: release.digest}
        )
        return number

    def alias(self, number: str, *, through: str = "mlflow") -> None:
        """Move `champion`: through MLflow's server, or the database."""
        if through == "database":
            self.registry.promote(self.registry.version(MODEL, number))
            return
        body = {"name": MODEL, "alias": "champion", "version": number}
        httpx.post(
            f"{self.mlflow}/api/2.0/mlflow/registered-models/alias", json=body, timeout=30
        ).raise_for_status()

    def no_alias(self) -> None:
        body = {"name": MODEL, "alias": "champion"}
        url = f"{self.mlflow}/api/2.0/mlflow/registered-models/alias"
        httpx.request("DELETE", url, json=body, timeout=30).raise_for_status()

    @property
    def mlflow(self) -> str:
        return self.ports.url("mlflow")

    @property
    def ports(self) -> service_addresses.Addresses:
        ports = service_addresses.read(self.home)
        assert ports is not None
        return ports

    def events(self, since: float) -> list[dict[str, Any]]:
        """Moves of an alias that Prefect was told of since then (Unix time)."""
        body = {
            "filter": {
                "event": {"name": ["mlflow.model-version-alias.created"]},
                "occurred": {"since": datetime.fromtimestamp(since, UTC).isoformat()},
            }
        }
        answer = httpx.post(
            f"{self.ports.prefect_api}/events/filter",
            json=body,
            auth=prefect_settings.login(self.home),
            timeout=30,
        ).raise_for_status()
        found: list[dict[str, Any]] = answer.json()["events"]
        return found

    def serves(self, number: str, seconds: float = 60) -> None:
        """Wait until this version has all the traffic, and nothing goes on."""
        until(
            lambda: (
                (state := self.state).current is not None
                and state.current.release.version == number
                and state.rollout is None
            ),
            seconds,
            lambda: f"version {number} should serve: {self.state}",
            poll=SELDOM,
        )

    def phase(self, *names: str, seconds: float = 60) -> None:
        """Wait until a rollout is at one of these phases."""
        until(
            lambda: (rollout := self.state.rollout) is not None and rollout.phase in names,
            seconds,
            lambda: f"a rollout should be at {names}: {self.state}",
        )

    def rolled_out(self, number: str, since: float) -> RolloutRecord:
        """The rollout of this version that began after `since` (Unix time), once MLflow's ledger
        says how it ended.
        """

        def found() -> list[RolloutRecord]:
            history = self.registry.history(MODEL)
            return [
                one
                for one in history
                if one.version == number and one.began >= since and one.outcome != "begun"
            ]

        until(
            found,
            30,
            lambda: (
                f"the ledger should tell of version {number}: {self.registry.history(MODEL)[:3]}"
            ),
            poll=SELDOM,
        )
        return found()[0]

    def failed(self, number: str, since: float, seconds: float = 90) -> RolloutRecord:
        """Wait until this version failed after `since` (Unix time); return its record."""
        until(
            lambda: (
                (failed := self.state.last_failure) is not None
                and failed.release.version == number
                and failed.at >= since
                and self.state.rollout is None
            ),
            seconds,
            lambda: f"version {number} should have failed: {self.state}",
            poll=SELDOM,
        )
        rollout = self.rolled_out(number, since)
        assert rollout.outcome == "failed"
        return rollout

    def pid(self, program: str) -> int:
        until(
            lambda: (state := self.host.state(program)) is not None and state.pid,
            20,
            lambda: f"{program} should run: {self.host.states()}",
        )
        state = self.host.state(program)
        assert state is not None
        return state.pid

    def kill(self, program: str) -> None:
        """As the kernel does that lacks memory."""
        os.kill(self.pid(program), signal.SIGKILL)

    def deployer_began(self) -> float:
        """Unix time at which the deployer that answers was started; 0 where none does."""
        with contextlib.suppress(httpx.HTTPError):
            url = f"{self.ports.url('deployer')}/status"
            return float(loopback.get(url).json()["since"])
        return 0.0

    def deployer_is_idle(self) -> bool:
        """Whether it is at work at no target: what is stopped in a write keeps the database."""
        status = loopback.get(f"{self.ports.url('deployer')}/status").json()
        return not any(target["busy_since"] for target in status["targets"].values())

    def well(self, seconds: float = 90) -> None:
        """Wait until every service answers."""
        until(
            lambda: all(part.answers for part in self.platform.services()),
            seconds,
            lambda: f"every service should answer: {self.platform.services()}",
            poll=SELDOM,
        )

    def check_invariants(self) -> None:
        """The gateway sends everything to what serves, and no other version runs that does not
        drain.
        """
        while True:
            state, facts, programs = (
                self.state,
                Gateway(self.home).servers(MODEL),
                self.host.names(),
            )
            if state == self.state:  # else something was stopped while we looked
                break
        assert state.current is not None
        assert state.rollout is None
        name, draining = state.current.name, {one.revision.name for one in state.draining}
        assert {fact.name: fact.weight for fact in facts if fact.weight and not fact.draining} == {
            name: 100
        }
        running = {
            program.removeprefix(f"{MODEL}@")
            for program in programs
            if program.startswith(f"{MODEL}@")
        }
        # What drains has ended a moment before the record says so.
        assert {name} <= running <= {name} | draining


def settings(home: Path, cache: Path, **changes: Any) -> Settings:
    """Ports of nobody; looks at the alias often."""
    ports = {"prefect_port": 0, "mlflow_port": 0, "deployer_port": 0, "metrics_port": 0}
    return Settings(home=home, cache=cache, **{**ports, **changes})
