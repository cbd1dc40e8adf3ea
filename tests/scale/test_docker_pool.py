"""A release whose fine-tune runs in a container, by Prefect's Docker worker; and its Bento in one.

Images are built from the locks where they are not here yet, which takes minutes and gigabytes::

    WEIGHBRIDGE_DOCKER_POOL=1 python -m pytest tests/scale/test_docker_pool.py

`WEIGHBRIDGE_BUILD_OPTIONS` are further options of `podman build`, such as `--network=host`.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from tests.conftest import MACHINE_CACHE
from tests.flows.chain import recipe, write_data
from tests.scale import podman
from tests.serving.bentos import release
from tests.stand_ins.swift import Swift
from tests.waiting import soon, until
from weighbridge.cli.main import cli
from weighbridge.configs.recipe import Recipe
from weighbridge.core import s3
from weighbridge.core.artifact import Artifact
from weighbridge.core.container_layout import USER
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process, free_port
from weighbridge.core.service_addresses import answers
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import Downloaded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("WEIGHBRIDGE_DOCKER_POOL"),
        reason="takes images of gigabytes: WEIGHBRIDGE_DOCKER_POOL=1 runs it",
    ),
]
BUCKET = "docker-pool"
SAVED_EVERY = 10
PODMANS_VERSION = "UserWarning: `host.docker.internal`"
"""What the worker says of a Docker older than any: it takes podman's version for Docker's."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Podman's own."""
    if reason := podman.missing():
        pytest.skip(reason)
    return podman.variables(tmp_path_factory.mktemp("podman"))


def image(name: str, settings: dict[str, str]) -> str:
    """The image of this name, built where it is not there yet."""
    options = os.environ.get("WEIGHBRIDGE_BUILD_OPTIONS", "").split()
    arguments = [f"--build-option={option}" for option in options]
    command = ["image", name, "--builder", "podman", "--json", *arguments]
    done = CliRunner(env=settings).invoke(cli, command, catch_exceptions=False)
    [built] = json.loads(done.stdout)
    return str(built["reference"])


@pytest.fixture
def variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Prefect and a shared store, which containers on the machine's own network reach."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    server = {"PREFECT_HOME": str(tmp_path / "server"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (
        Swift(tmp_path / "swift", MACHINE_CACHE) as swift,
        Process("Prefect", command, log=tmp_path / "prefect.log", cwd=tmp_path, env=server) as run,
    ):
        swift.create_bucket(BUCKET)
        run.wait_until(lambda: answers(f"{api}/health"), 120)
        variables = {
            **swift.variables,
            "PREFECT_API_URL": api,
            "WEIGHBRIDGE_STORE": f"s3://{BUCKET}/team",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables


@pytest.fixture
def pool(
    settings: dict[str, str], variables: dict[str, str], tmp_path: Path
) -> Iterator[dict[str, str]]:
    """A pool `containers` with a worker on podman's socket; its log is in `worker.log`."""
    from weighbridge.flows import prefect_internals, prefect_server

    if find_spec("prefect_docker") is None:
        pytest.skip("prefect-docker is not installed")
    # Prefect warns of a home that it would have to make with its parents.
    (Settings().home / "prefect").mkdir(parents=True)
    apply_pool(image("control", settings))
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "containers"]
    worker += ["--type", "docker", "--limit", "1", "--install-policy", "never"]
    with (
        podman.socket(tmp_path, settings) as address,
        Process(
            "the worker",
            worker,
            log=tmp_path / "worker.log",
            cwd=tmp_path,
            env={"DOCKER_HOST": address, "PREFECT_WORKER_QUERY_SECONDS": "1"},
        ),
        prefect_server.prefect_api(Settings()),
    ):
        yield variables
        # Once the server is gone, Prefect waits for it at the end of this process.
        prefect_internals.send_what_is_left()


def apply_pool(reference: str) -> None:
    options = ["--pool", "containers", "--image", reference, "--set", "network_mode=host"]
    # The limits of this machine's cgroups are not ours to set.
    options += ["--set", "volumes=[]", "--save-secrets", "--json"]
    arguments = ["pools", "apply", "--type", "docker", *options]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["missing_blocks"] == []


def release_of(tiny_model: Path, tmp_path: Path, steps: int = 4, **place: Any) -> Recipe:
    """A recipe whose fine-tune runs in a container."""
    return Recipe.model_validate(
        recipe(
            f"file://{tiny_model}",
            f"file://{write_data(tmp_path / 'data')}",
            finetune__max_steps=steps,
            finetune__save_steps=SAVED_EVERY,
            optimize={"variants": [{"kind": "gguf", "quantization": "Q8_0"}]},
            run={"finetune": {"pool": "containers", **place}},
        )
    )


def fine_tuned(loaded: Recipe) -> tuple[Artifact, Downloaded]:
    """The weights that the release's fine-tune gave, by way of the pool, and of what."""
    from weighbridge.flows.pool_checks import check
    from weighbridge.flows.prefect_adapter import release_flow
    from weighbridge.flows.release_run import ReleaseRun

    def worker_is_there() -> bool:
        try:
            check(loaded.run, Workspace())
        except Exception:
            return False
        return True

    until(worker_is_there, 120, poll=1)

    @release_flow(name="release")
    def flow() -> tuple[Artifact, Downloaded]:
        with ReleaseRun.begin(loaded) as run, run.records.mlflow_run:
            run.preflight()
            downloaded = run.download()
            return run.finetune(downloaded), downloaded

    return flow()


def test_a_fine_tune_runs_in_a_container_of_a_docker_pool(
    pool: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    model, _ = fine_tuned(release_of(tiny_model, tmp_path))
    assert Workspace().store.is_in_reach(model)
    # Whoever trains has a folder for it.
    assert not (Settings().home / "runs").exists()
    said = (tmp_path / "worker.log").read_text()
    assert "Docker container 'finetune-" in said
    assert "Warning" not in said.replace(PODMANS_VERSION, "")


def test_a_fine_tune_whose_container_is_killed_goes_on_from_its_last_checkpoint(
    pool: dict[str, str],
    settings: dict[str, str],
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from weighbridge.flows.cached_stages import finetune_step

    checkpoints = s3.S3Location(bucket=BUCKET, prefix="team/checkpoints")

    def has_shared_one() -> bool:
        return any(found.file.path.endswith("last.json") for found in s3.stored_below(checkpoints))

    def kill() -> None:
        if soon(has_shared_one, 300, poll=0.2):
            [name] = podman.run(
                "ps", "--quiet", "--filter", "name=finetune", **settings
            ).stdout.split()
            podman.run("kill", "--signal", "KILL", name, **settings)

    loaded = release_of(tiny_model, tmp_path, steps=400)
    with (
        ThreadPoolExecutor(1) as others,
        caplog.at_level(logging.WARNING, "weighbridge.flows.stage_pools"),
    ):
        killed = others.submit(kill)
        _, downloaded = fine_tuned(loaded)
        killed.result()
    assert "status code 137" in caplog.text
    assert "it is begun again" in caplog.text
    workspace = Workspace()
    assert loaded.finetune != "none"
    found = finetune_step(downloaded, loaded.finetune, workspace).forecast(workspace).value
    assert found is not None
    assert found.facts["resumed_from"] == f"checkpoint-{SAVED_EVERY}"


def test_an_image_that_cannot_be_pulled_ends_the_run_with_the_reason_within_its_deadline(
    pool: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    missing = f"127.0.0.1:{free_port()}/team/weighbridge-control:1"
    variables = {"image": missing}
    loaded = release_of(tiny_model, tmp_path, job_variables=variables, start_deadline=60)
    began = time.monotonic()
    with pytest.raises(Unavailable) as ended:
        fine_tuned(loaded)
    assert time.monotonic() - began < 60
    assert f"pull failed for {missing}" in ended.value.wrong
    assert ended.value.remedy == "see the log of its worker"


def test_a_container_out_of_memory_ends_the_run_with_that_reason(
    pool: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    loaded = release_of(tiny_model, tmp_path, job_variables={"mem_limit": "200m"}, retries=1)
    with pytest.raises(Unavailable, match=r"SIGKILL.*begun again 1 times.*give it more memory"):
        fine_tuned(loaded)


def test_a_bento_in_its_engines_image_serves_as_nobody_and_ends_well(
    settings: dict[str, str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(workspace.settings.home / "bentoml"))
    bento = workspace.store.folder(release(workspace).digest)
    reference, port = image("llama_cpp", settings), free_port()
    name = f"weighbridge-{os.getpid()}"
    options = ["--network", "host", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    options += ["--volume", f"{bento}:/bento:ro", "--env", f"PORT={port}"]
    started = podman.run("run", "--detach", "--name", name, *options, reference, **settings)
    assert started.returncode == 0, started.stderr
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/livez"), 120, lambda: logs(name, settings), poll=0.5)
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        users = podman.run("top", name, "huser", **settings).stdout.split()[1:]
        assert set(users) == {str(USER)}
        podman.run("stop", "--time", "30", name, **settings)
        assert podman.state(name, **settings)["ExitCode"] == 0
        said = logs(name, settings)
        assert "Traceback" not in said
        assert "the engine has ended" in said
    finally:
        podman.run("rm", "--force", name, **settings)


def logs(name: str, settings: dict[str, str]) -> str:
    done = podman.run("logs", name, **settings)
    return done.stdout + done.stderr
