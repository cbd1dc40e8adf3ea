"""Stages on work pools: what handing one over costs, and what a second worker brings.

Everything is real but the candidates' engines: Prefect's server, workers of a process pool with
homes of their own, an S3 service. Two workers stand for two machines, so that each has a lock of
its own; candidates are endpoints that answer slowly and take no processor, as on other machines.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.common import Figures
from tests.flows.chain import recipe, write_data
from tests.models import tiny_model
from tests.stand_ins.openai import Behaviour, Server
from tests.stand_ins.swift import Swift
from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.processes import Process, free_port
from weighbridge.core.service_addresses import answers
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace

BUCKET: Final = "scale"
MOST_SECONDS: Final = 8.0
"""Goal: how much longer a stage may take on a pool."""
FEWEST_TIMES: Final = 1.8
"""Goal: how much faster two workers weigh than one."""
CANDIDATES: Final = 4


@dataclass
class Site:
    """A Prefect with a pool, and its workers."""

    folder: Path
    server: Process
    workers: list[Process]

    def cpu(self) -> float:
        """Return processor seconds of this process, the server and the workers' until now."""
        roots = [psutil.Process(), *(psutil.Process(one.pid) for one in self._programs())]
        # What a worker has waited for is among its own; what it runs right now is not.
        return sum(sum(root.cpu_times()[:4]) for root in roots)

    def _programs(self) -> list[Process]:
        return [self.server, *self.workers]


@contextmanager
def site(folder: Path, workers: int) -> Iterator[Site]:
    """Run a server and so many workers of the pool `pool`."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    with ExitStack() as stack:
        swift = stack.enter_context(Swift(folder / "swift", Settings().cache))
        swift.create_bucket(BUCKET)
        own = {**swift.variables, "PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "prefect")}
        own |= {"WEIGHBRIDGE_STORE": f"s3://{BUCKET}/team", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        own |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "BENTOML_DO_NOT_TRACK": "True"}
        os.environ.update(own)
        prefect = [sys.executable, "-m", "prefect"]
        server = stack.enter_context(
            Process(
                "Prefect",
                [*prefect, "server", "start", "--port", str(port)],
                log=folder / "server.log",
                cwd=folder,
                env=os.environ,
            )
        )
        server.wait_until(lambda: answers(f"{api}/health"), 120)
        apply = [sys.executable, "-m", "weighbridge.cli.main", "pools", "apply"]
        subprocess.run([*apply, "--type", "process", "--pool", "pool"], check=True)
        started = [stack.enter_context(_worker(folder, number)) for number in range(workers)]
        yield Site(folder, server, started)


def _worker(folder: Path, number: int) -> Process:
    home = folder / f"worker-{number}"
    (home / "tmp").mkdir(parents=True)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "pool"]
    command += ["--type", "process", "--name", f"worker-{number}", "--install-policy", "never"]
    # As on a machine of its own: one stage at a time.
    command += ["--limit", "1"]
    variables = {"WEIGHBRIDGE_HOME": str(home), "TMPDIR": str(home / "tmp")}
    # As where `prefect` was found: the jobs' command is found there, too.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **variables, "PREFECT_HOME": str(home / "prefect")}
    return Process(f"worker {number}", command, log=home / "log", cwd=home, env=environment)


def in_flow(call: Callable[[], Any], settings: Settings, recipe_of_it: Recipe) -> Any:
    """Return what a call within a flow run gives, once the pool can run stages."""
    from weighbridge.flows.prefect_server import prefect_api

    with prefect_api(settings):
        from weighbridge.core.errors import WeighbridgeError
        from weighbridge.flows import pool_checks
        from weighbridge.flows.prefect_adapter import release_flow

        while True:
            try:
                pool_checks.check(recipe_of_it.run, Workspace())
                break
            except WeighbridgeError:
                time.sleep(0.5)

        @release_flow(name="release")
        def flow() -> Any:
            return call()

        return flow()


def home(site: Site, name: str) -> Workspace:
    return Workspace(Settings(home=site.folder / name, store=f"s3://{BUCKET}/team"))


def stage(rounds: int) -> Figures:
    """Measure a stage of a second, here and on the pool: the download of a tiny model."""
    from weighbridge.flows import cached_stages
    from weighbridge.flows.placed_stages import PlacedStages
    from weighbridge.flows.remote_stages import StageInputs
    from weighbridge.tasks.download import pin

    figures = Figures("scale-stage")
    sides: dict[str, dict[str, list[float]]] = {"wall": {}, "cpu": {}}
    with tempfile.TemporaryDirectory() as name, site(Path(name), workers=1) as one:
        model = tiny_model(Settings().cache)
        for number in range(rounds):
            data = write_data(one.folder / f"data-{number}")
            (data / "train.jsonl").open("a").write(
                '{"messages": [{"role": "user", "content": "order"},'
                f' {{"role": "assistant", "content": "{number} ok"}}]}}\n'
            )
            for side in ("here", "pool"):
                document = recipe(f"file://{model}", f"file://{data}")
                document["run"] = {"default": {"pool": "pool"}}
                loaded = Recipe.model_validate(document)
                workspace = home(one, f"{side}-{number}")
                pinned = pin(loaded.download, workspace)
                # Another store, or what is made on one side would be reused on the other.
                if side == "here":
                    workspace = Workspace(Settings(home=workspace.settings.home, store=""))
                step = cached_stages.download_step(pinned, loaded, workspace)
                placed = PlacedStages(loaded, workspace)
                given = StageInputs(pinned=pinned)
                run = partial(placed.run, step, given)
                if side == "here":
                    run = partial(step.run, workspace)

                def call(run: Callable[[], Any] = run) -> tuple[float, float]:
                    wall, cpu = time.monotonic(), one.cpu()
                    run()
                    took = time.monotonic() - wall
                    # The worker has to have waited for its process.
                    time.sleep(3)
                    return took, one.cpu() - cpu

                wall, cpu = in_flow(call, workspace.settings, loaded)
                sides["wall"].setdefault(side, []).append(wall)
                sides["cpu"].setdefault(side, []).append(cpu)
    for what, turns in sides.items():
        for side, seconds in turns.items():
            figures.add(f"{what}_seconds_{side}", seconds)
        more = [pool - here for pool, here in zip(turns["pool"], turns["here"], strict=True)]
        goal = MOST_SECONDS if what == "wall" else None
        figures.add(f"{what}_seconds_more", more, at_most=goal)
    return figures


def workers() -> Figures:
    """Measure the weighing of candidates that take a while, by one worker and by two."""
    figures = Figures("scale-workers")
    seconds = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as name, site(Path(name), count) as several:
            seconds[count] = _weigh_all(several)
        figures.add(f"seconds_{count}_worker{'s' * (count > 1)}", seconds[count])
    figures.add("times_as_fast", seconds[1] / seconds[2], at_least=FEWEST_TIMES)
    return figures


def _weigh_all(several: Site) -> float:
    from tests.tasks.fine_tuning import chat, stored_model, stored_rows
    from weighbridge.flows.placed_stages import PlacedStages
    from weighbridge.flows.remote_stages import StageInputs
    from weighbridge.tasks.download import Downloaded
    from weighbridge.tasks.measurement import Variant
    from weighbridge.tasks.optimize import Optimized

    workspace = home(several, "flow")
    model: Artifact = stored_model(tiny_model(Settings().cache), workspace)
    data = stored_rows([chat(number) for number in range(6)], workspace)
    slow = Behaviour(first_delay=1.0)
    with ExitStack() as stack:
        endpoints = [stack.enter_context(Server(("127.0.0.1", 0), slow)) for _ in range(CANDIDATES)]
        document = recipe("file:///model", "file:///data", run={"weigh": {"pool": "pool"}})
        document["weigh"]["engines"] = [
            {"kind": "openai", "url": f"{endpoint.url}/v1"} for endpoint in endpoints
        ]
        document["weigh"] |= {"concurrency": [1], "requests": 15, "tune": False}
        document["optimize"] = {"variants": [{"kind": "none"}]}
        document["evaluate"] = {"metrics": [{"kind": "exact_match"}], "max_new_tokens": 8}
        loaded = Recipe.model_validate(document)
        placed = PlacedStages(loaded, workspace)
        variants = [Variant(label="none", optimizer="none", artifact=model)]

        def call() -> float:
            downloaded = Downloaded(model=model, data=data)
            optimized = Optimized(variants=variants)
            given = StageInputs(downloaded=downloaded, model=model, optimized=optimized)
            began = time.monotonic()
            step = placed.weigh_step(downloaded, model, optimized)
            weighed = placed.weigh(step, given).value
            failed = [one.failure for one in weighed.measurements if one.failure]
            assert not failed, failed
            return time.monotonic() - began

        taken: float = in_flow(call, workspace.settings, loaded)
    return taken
