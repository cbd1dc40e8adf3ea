"""What a promotion costs, with a crowd at the address that never leaves; what the gateway costs;
what others cost.

- promotions: the alias `champion` moves back and forth between two versions on real MLflow,
  Prefect, deployer, haproxy and llama.cpp, while 32 clients ask, 8 of them for long streams. From
  the moment before MLflow is told until the first byte of an answer of the new version; and that
  less the time that the version took from its start to its first completion, which no redeployment
  can spare. A request that fails, or a stream that ends before its end, counts.
- restart: the same Bento under the plain `bentoml serve`, stopped and started again under the same
  crowd: the longest time in which nobody got an answer.
- gateway: short answers by one engine, asked directly and through haproxy, in turns.

ZenML 0.98 (BentoML deployer, continuous mode) was measured once on two cores: it stops the old
service first, 10 to 19 s of outage and 1,025 of 5,640 requests failed per promotion; a version that
raises at its start leaves nothing serving, and the call tells of success.

Usage: python -m benchmarks.redeploy [--promotions N] [--only promotions|restart|gateway]
"""

import argparse
import contextlib
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from benchmarks.common import Figures, alternate, report
from benchmarks.cpu import COMMAND, ROOT
from benchmarks.crowd import Crowd, Habits, Request
from benchmarks.recipes import small_recipe
from weighbridge.core import service_addresses
from weighbridge.core.processes import Process, free_port
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry
from weighbridge.registry.ledger import RolloutRecord
from weighbridge.rollout import target_operations
from weighbridge.rollout.champion import BENTO_DIGEST
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.state import TargetState, known_targets
from weighbridge.services.platform import Platform
from weighbridge.serving import bento_process
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.models import Front, Route
from weighbridge.serving.openai_client import is_ready
from weighbridge.serving.quantiles import percentile

NAME = "switch"
PROMOTIONS = 20
ON_TOP = 3.0
"""Seconds, over the version's own start, within which it shall answer at the address."""
BEFORE, AFTER = 3.0, 5.0
"""Seconds that the crowd is there before the first, and after the last change."""
LIMIT = 180.0
ENGINE = {"kind": "llama_cpp", "threads": 1, "parallel": 16, "ctx_size": 16 * 1024}
HABITS = Habits(stream_tokens=800, short_tokens=8, pause=0.5, body={"ignore_eos": True})
GATEWAY_SECONDS = 5.0
GATEWAY_ROUNDS = 5
CONCURRENCIES = (1, 16)


@dataclass
class Installation:
    """A home of its own with two versions of one model, and everything that `weighbridge up`
    starts.
    """

    folder: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        ports = ("PREFECT_PORT", "MLFLOW_PORT", "DEPLOYER_PORT", "METRICS_PORT")
        os.environ |= {
            "WEIGHBRIDGE_HOME": str(self.folder / "home"),
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "DO_NOT_TRACK": "1",
            **{f"WEIGHBRIDGE_{name}": "0" for name in ports},
        }
        # Else flows would run against the server of whoever starts the benchmark.
        os.environ.pop("PREFECT_API_URL", None)
        self.workspace = Workspace(Settings())
        self.platform = Platform(self.workspace.settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def record(self) -> TargetState:  # type: ignore[type-arg]
        managed = (
            open_target(NAME, self.workspace)
            if NAME in known_targets(self.workspace.settings.home)
            else None
        )
        return managed.load_state() if managed else TargetState()

    def release(self) -> None:
        """Release two versions through the release flow; the better one serves."""
        from examples.support_tickets import ensure

        os.environ["WEIGHBRIDGE_DEMO"] = str(ensure(self.workspace.settings.cache))
        rollout = {"step_seconds": 1, "memory_reserve": "128MiB"}
        recipe = small_recipe(
            self.folder,
            NAME,
            variants=2,
            weigh={"engines": [ENGINE]},
            evaluate={"limit": 32},
            deploy={"target": {"kind": "local", "port": self.port}, "rollout": rollout},
        )
        subprocess.run([COMMAND, "run", str(recipe)], cwd=ROOT, check=True, stdout=sys.stderr)

    def versions(self) -> list[str]:
        """Return both versions, the one that does not serve first."""
        registry = Registry.connect(self.workspace.settings)
        variants = [
            version.version for version in registry.versions(NAME) if version.role == "variant"
        ]
        return sorted(variants, key=lambda version: version == self.serving())

    def serving(self) -> str:
        record = self.record
        return record.current.release.version if record.current and not record.rollout else ""

    def move_alias(self, version: str) -> None:
        """Move the alias as MLflow's UI does."""
        ports = service_addresses.read(self.workspace.settings.home)
        assert ports is not None
        body = {"name": NAME, "alias": "champion", "version": version}
        url = f"{ports.url('mlflow')}/api/2.0/mlflow/registered-models/alias"
        httpx.post(url, json=body, timeout=30, trust_env=False).raise_for_status()

    def await_serving(self, version: str) -> None:
        """Wait until a version has all the traffic and nothing drains."""
        wait(
            lambda: (
                self.serving() == version and target_operations.stop_drained(NAME, self.workspace)
            ),
            f"version {version} to serve",
        )

    def last(self) -> RolloutRecord:
        """Return the newest rollout, as MLflow has it."""
        registry = Registry.connect(self.workspace.settings)
        wait(lambda: registry.history(NAME, 1)[0].ended, "the ledger to tell how it ended")
        return registry.history(NAME, 1)[0]


def wait(true: Callable[[], object], what: str, seconds: float = LIMIT) -> None:
    """Wait until something is true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)


@contextlib.contextmanager
def installation() -> Iterator[Installation]:
    """Give an installation that is up, with one version serving and both packaged."""
    with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
        installed = Installation(Path(folder))
        try:
            installed.release()
            installed.platform.up()
            for version in installed.versions():
                installed.move_alias(version)
                installed.await_serving(version)
            yield installed
        finally:
            installed.platform.down()


def promotions(installed: Installation, count: int, figures: Figures) -> None:
    """Move the alias back and forth under the crowd."""
    pair = installed.versions()
    waits: list[float] = []
    rollouts: list[RolloutRecord] = []
    with Crowd(installed.url, HABITS, model=NAME) as crowd:
        time.sleep(BEFORE)
        # It begins with the version that does not serve, so that every move is a change.
        for number in range(count):
            version = pair[number % 2]
            print(f"promotion {number + 1} of {count}", file=sys.stderr, flush=True)
            began = time.monotonic()
            installed.move_alias(version)
            wait(partial(crowd.first_answer, version, began), f"an answer of version {version}")
            waits.append((crowd.first_answer(version, began) or 0.0) - began)
            installed.await_serving(version)
            rollouts.append(installed.last())
        time.sleep(AFTER)
    starts = [float(rollout.evidence["start_seconds"]) for rollout in rollouts]
    figures.add("promotion_first_answer_s", waits)
    figures.add("promotion_start_of_the_version_s", starts)
    figures.add(
        "promotion_on_top_s", [w - s for w, s in zip(waits, starts, strict=True)], at_most=ON_TOP
    )
    figures.add("promotion_whole_s", [rollout.seconds or 0.0 for rollout in rollouts])
    figures.add(
        "promotions_that_did_not_hold",
        sum(rollout.outcome != "serving" for rollout in rollouts),
        at_most=0,
    )
    add_crowd(figures, "promotion", crowd.requests, at_most=0)
    print(crowd.summary(), file=sys.stderr)


def add_crowd(
    figures: Figures, key: str, requests: Sequence[Request], *, at_most: float | None = None
) -> None:
    """Add requests, failures, and what may be said of their share: 0 of n allows up to 3/n with
    95 % confidence (the rule of three).
    """
    failed = sum(bool(request.problem) for request in requests)
    figures.add(f"{key}_requests", len(requests))
    figures.add(f"{key}_streams", sum(request.kind == "stream" for request in requests))
    figures.add(f"{key}_requests_failed", failed, at_most=at_most)
    if not failed:
        figures.add(f"{key}_failure_rate_95_percent_bound", 3 / max(len(requests), 1))


def restart(installed: Installation, rounds: int, figures: Figures) -> None:
    """Measure `bentoml serve` of the same Bento, restarted as one does without anything else."""
    registry = Registry.connect(installed.workspace.settings)
    digest = registry.version(NAME, installed.serving()).tags[BENTO_DIGEST]
    store = installed.workspace.store
    folder = store.assemble(store.files(digest), "bento").path
    outages, requests, engine = [], [], free_port()
    command = bento_process.serve_command(
        folder,
        bento_process.environment_of(folder, installed.workspace.settings.cache),
        "127.0.0.1",
        free_port(),
    )
    log = installed.folder / "restart.log"

    def start() -> Process:
        process = Process(
            "bentoml",
            command,
            log=log,
            cwd=installed.folder,
            env=bento_process.variables("127.0.0.1", engine),
        )
        process.wait_until(lambda: is_ready(f"http://127.0.0.1:{engine}"), LIMIT)
        return process

    process = start()
    for number in range(rounds):
        print(f"restart {number + 1} of {rounds}", file=sys.stderr, flush=True)
        with Crowd(f"http://127.0.0.1:{engine}", HABITS) as crowd:
            time.sleep(BEFORE)
            process.stop()
            process = start()
            time.sleep(AFTER)
        answers = sorted(request.first for request in crowd.requests if not request.problem)
        outages.append(max(later - earlier for earlier, later in itertools.pairwise(answers)))
        requests += crowd.requests
    process.stop()
    figures.add("bentoml_restart_outage_s", outages)
    add_crowd(figures, "bentoml_restart", requests)


def gateway(installed: Installation, figures: Figures) -> None:
    """Measure the same engine, asked directly and through haproxy."""
    current = installed.record.current
    assert current is not None
    front = Front(target="cost", port=free_port(), routes=(Route(name="1", port=current.port),))
    Gateway(installed.workspace.settings.home).apply(front)
    urls = {"direct": current.url, "gateway": f"http://127.0.0.1:{front.port}"}
    for streams in CONCURRENCIES:
        turns = alternate(list(urls), partial(_short_answers, urls, streams), GATEWAY_ROUNDS)
        for number, title in enumerate(("requests_per_second", "p50_ms", "p99_ms")):
            key = f"c{streams}_{title}"
            figures.add_many(
                key, {side: [row[number] for row in rows] for side, rows in turns.items()}
            )
            figures.ratio(key, "gateway", "direct")
        failed = sum(row[-1] for rows in turns.values() for row in rows)
        figures.add(f"c{streams}_requests_failed", failed, at_most=0)
    Gateway(installed.workspace.settings.home).remove("cost")


def _short_answers(
    urls: Mapping[str, str], streams: int, side: str
) -> tuple[float, float, float, int]:
    """Return requests per second, their median and 99th percentile in ms, and failures."""
    habits = Habits(short=streams, streams=0, short_tokens=1, pause=0.0)
    with Crowd(urls[side], habits, model=NAME) as crowd:
        time.sleep(GATEWAY_SECONDS)
    answered = [request for request in crowd.requests if not request.problem]
    milliseconds = sorted(1000 * (request.ended - request.began) for request in answered)
    return (
        len(answered) / GATEWAY_SECONDS,
        percentile(milliseconds, 0.5) or math.nan,
        percentile(milliseconds, 0.99) or math.nan,
        len(crowd.problems),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--promotions", type=int, default=PROMOTIONS, help="how often the alias moves (%(default)s)"
    )
    parser.add_argument(
        "--restarts", type=int, default=3, help="of plain `bentoml serve` (%(default)s)"
    )
    parser.add_argument(
        "--only", choices=("promotions", "restart", "gateway"), help="one part alone"
    )
    options = parser.parse_args()
    figures = Figures("redeploy")
    with installation() as installed:
        if options.only in (None, "promotions"):
            promotions(installed, options.promotions, figures)
        if options.only in (None, "restart"):
            restart(installed, options.restarts, figures)
        if options.only in (None, "gateway"):
            gateway(installed, figures)
    report(figures)


if __name__ == "__main__":
    main()
