"""A release over two hosts: fine-tune on one, which dies meanwhile, weigh on the other.

It takes 150 s of a processor, which the ordinary run of all tests has not to spare::

    WEIGHBRIDGE_TWO_HOSTS=1 python -m pytest tests/scale/test_two_hosts.py
"""

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MACHINE_CACHE
from tests.flows.chain import recipe, write_data
from tests.scale.hosts import Host, Network, missing
from tests.stand_ins.postgresql import Postgresql, programs
from tests.stand_ins.swift import Swift
from tests.waiting import soon, until
from weighbridge.configs.recipe import Recipe
from weighbridge.core.processes import Process, free_port
from weighbridge.core.service_addresses import answers
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import Downloaded
from weighbridge.tasks.finetune import finetune
from weighbridge.tasks.weigh import Weighed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("WEIGHBRIDGE_TWO_HOSTS"),
        reason="takes 150 s of a processor: WEIGHBRIDGE_TWO_HOSTS=1 runs it",
    ),
]
BUCKET = "two-hosts"
STEPS, SAVED_EVERY = 150, 10


@dataclass
class Site:
    """Prefect on PostgreSQL and an S3 service, which two hosts reach."""

    hosts: dict[str, Host]
    variables: dict[str, str]
    swift: Swift

    def worker(self, host: str, pool: str) -> None:
        self.hosts[host].start(
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", pool),
            *("--type", "process", "--name", f"{host}-{pool}", "--install-policy", "never"),
            variables={
                **self.variables,
                "PREFECT_HOME": str(self.hosts[host].folder / "prefect"),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
            },
        )

    def has_shared_a_checkpoint(self) -> bool:
        listed = self.swift.client().list_objects_v2(Bucket=BUCKET, Prefix="team/checkpoints/")
        return any(entry["Key"].endswith("last.json") for entry in listed.get("Contents", []))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if reason := missing():
        pytest.skip(reason)
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    port = free_port()
    with (
        Network(tmp_path, "a", "b") as network,
        Postgresql() as database,
        Swift(tmp_path / "swift", MACHINE_CACHE, host=network.gateway) as swift,
    ):
        swift.create_bucket(BUCKET)
        api = f"http://{network.gateway}:{port}/api"
        server = {
            **os.environ,
            "PREFECT_HOME": str(tmp_path / "server"),
            "PREFECT_API_DATABASE_CONNECTION_URL": database.url.replace(
                "postgresql://", "postgresql+asyncpg://"
            ),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        command = [sys.executable, "-m", "prefect", "server", "start"]
        command += ["--host", network.gateway, "--port", str(port)]
        with Process(
            "Prefect", command, log=tmp_path / "prefect.log", cwd=tmp_path, env=server
        ) as process:
            process.wait_until(lambda: answers(f"{api}/health"), 120)
            variables = {
                **swift.variables,
                "PREFECT_API_URL": api,
                "WEIGHBRIDGE_STORE": f"s3://{BUCKET}/team",
                "WEIGHBRIDGE_CACHE": str(MACHINE_CACHE),
                "no_proxy": f"{network.gateway},127.0.0.1",
            }
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", database.url)
            (tmp_path / "prefect").mkdir()
            monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
            yield Site(network.hosts, variables, swift)


def recipe_for(tiny_model: Path, data: Path) -> Recipe:
    return Recipe.model_validate(
        recipe(
            f"file://{tiny_model}",
            f"file://{data}",
            finetune__max_steps=STEPS,
            finetune__save_steps=SAVED_EVERY,
            optimize={"variants": [{"kind": "gguf", "quantization": "Q8_0"}]},
            run={"finetune": {"pool": "train"}, "weigh": {"pool": "weigh"}},
        )
    )


def test_a_fine_tune_goes_on_on_another_host_and_what_comes_of_it_is_that_of_one_machine(
    site: Site,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from weighbridge.flows import prefect_server, stage_pools
    from weighbridge.flows.cached_stages import finetune_step

    caplog.set_level(logging.INFO, "weighbridge.flows.stage_pools")
    # More than one renewal of a lease.
    monkeypatch.setattr(stage_pools, "SILENCE", 15.0)
    loaded = recipe_for(tiny_model, write_data(tmp_path / "data"))
    site.worker("a", "train")
    site.worker("b", "weigh")

    def power_cut() -> None:
        if soon(site.has_shared_a_checkpoint, 120, poll=0.2):
            site.hosts["a"].kill()
            site.worker("b", "train")

    with prefect_server.prefect_api(Settings()):
        from weighbridge.flows.pool_checks import check
        from weighbridge.flows.prefect_adapter import release_flow
        from weighbridge.flows.release_run import ReleaseRun

        def workers_are_there() -> bool:
            try:
                check(loaded.run, Workspace())
            except Exception:
                return False
            return True

        until(workers_are_there, 90, poll=1)
        cut = threading.Thread(target=power_cut)
        cut.start()

        @release_flow(name="release")
        def flow() -> tuple[ReleaseRun, Downloaded, Weighed]:
            with ReleaseRun.begin(loaded) as run:
                run.preflight()
                downloaded = run.download()
                model = run.finetune(downloaded)
                optimized = run.optimize(downloaded, model)
                return run, downloaded, run.weigh(downloaded, model, optimized)

        run, downloaded, weighed = flow()
        cut.join()
    (measured,) = weighed.measurements
    assert measured.failure == ""
    assert measured.machine["host"] == "b"
    ran_on = [line for line in caplog.messages if line.startswith("finetune: Running on")]
    assert ran_on[0].endswith("on a")
    assert ran_on[-1].endswith("on b")
    versions = run.registry.versions(loaded.name)
    assert len({version.digest for version in versions}) == len(versions)

    args = loaded.finetune
    assert args != "none"
    alone = Workspace(Settings(home=tmp_path / "alone", store="", cache=MACHINE_CACHE))
    given = alone.store
    for artifact in (downloaded.model, downloaded.data):
        shutil.copytree(artifact.path, tmp_path / artifact.short)
    model, data = (
        given.add(tmp_path / artifact.short, artifact.format, artifact.origin)
        for artifact in (downloaded.model, downloaded.data)
    )
    one = finetune(model, data, args, alone)
    assert run.versions["model"].digest == one.merged.digest
    found = finetune_step(downloaded, args, run.workspace).forecast(run.workspace).value
    assert found is not None
    assert found.facts["resumed_from"] == f"checkpoint-{SAVED_EVERY}"
