"""Triton: its repository, and a real tritonserver that answers, batches, and is not left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import MACHINE_CACHE
from tests.serving.engines.inside import run_inside
from tests.serving.engines.shimmed import Shimmed
from weighbridge.core.environments import ensure
from weighbridge.core.errors import Unavailable
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.triton import Triton, TritonArgs
from weighbridge.serving.engines.triton_vllm import TritonVllm, TritonVllmArgs
from weighbridge.serving.openai_client import Client

VLLM_FRONTEND = """#!/bin/sh
echo "$@" > words; cat models/llm/config.pbtxt models/llm/1/model.json > repository
"""

STUB = "triton_python_backend_stub"[:15]
"""Name of the process in which the model runs, as far as the kernel keeps it."""


@pytest.fixture(scope="module")
def running(onnx_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # A long delay, so that requests that come together are handed on together however busy the
    # machine is.
    args = TritonArgs(
        intra_op_num_threads=1, max_batch_size=4, alias="tiny", max_queue_delay_microseconds=200_000
    )
    with serve(onnx_tiny, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log") as engine:
        yield engine


def family(pid: int) -> list[psutil.Process]:
    """A process and everything it started."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def left_of(processes: list[psutil.Process], seconds: float = 60.0) -> list[psutil.Process]:
    """Return those that still run after a while; a process that has ended counts as ended."""
    deadline = time.monotonic() + seconds
    while (
        alive := [process for process in processes if runs(process)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# The repository


@pytest.mark.slow
def test_a_configuration_that_tritons_protobuf_does_not_know_is_an_error(tmp_path: Path) -> None:
    body = "from weighbridge.serving.engines.triton_repository import write_config\n"
    body += "write_config(Path('.'), {'max_batch_sise': 4})"
    done = run_inside(Triton.locks["cpu"], body, tmp_path)
    assert done.returncode == 1
    assert 'no field named "max_batch_sise"' in done.stderr
    assert not (tmp_path / "config.pbtxt").exists()


@pytest.mark.slow
def test_the_vllm_backend_gets_its_repository_and_tritons_own_frontend_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a `python3` that only writes down what it is given: the backend itself is in NVIDIA's
    container alone.
    """
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(VLLM_FRONTEND)
    (tmp_path / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "main.py").touch()
    args = TritonVllmArgs(frontend=tmp_path / "main.py", max_model_len=512, enforce_eager=True)
    python = ensure(TritonVllm.locks["cuda"], MACHINE_CACHE).python
    command = TritonVllm(args).command(Path("/models/one"), "127.0.0.1", 8000, python)
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "words").read_text().split() == [
        str(tmp_path / "main.py"),
        "--model-repository",
        str(tmp_path / "models"),
        "--tokenizer",
        "/models/one",
        "--backend",
        "vllm",
        "--host",
        "127.0.0.1",
        "--openai-port",
        "8000",
    ]
    config, _, told = (tmp_path / "repository").read_text().partition('{\n "model"')
    assert 'backend: "vllm"' in config
    assert "kind: KIND_MODEL" in config
    assert json.loads('{ "model"' + told) == {
        "model": "/models/one",
        "dtype": "auto",
        "max_model_len": 512,
        "gpu_memory_utilization": 0.9,
        "tensor_parallel_size": 1,
        "enforce_eager": True,
    }


def test_a_frontend_that_is_not_there_is_told_with_the_container_that_has_it() -> None:
    with pytest.raises(
        Unavailable,
        match=r"starting triton_vllm: there is no /opt/tritonserver/.*tritonserver:<rel",
    ):
        TritonVllm(TritonVllmArgs()).command(Path("m"), "127.0.0.1", 1, Path(sys.executable))


# The server


class TestTriton(Shimmed):
    engine = Triton(TritonArgs())


@pytest.mark.slow
def test_requests_that_come_together_are_handed_on_together(running: Running) -> None:
    client = Client(running.url)
    alone = [client.ask(f"Hello {number}", max_tokens=8).text for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda number: client.ask(f"Hello {number}", max_tokens=8).text, range(8))
        )
    assert together == alone
    batches = batch_sizes(running)
    assert sum(batches.values()) < sum(size * count for size, count in batches.items())
    assert max(batches) > 1


def batch_sizes(running: Running) -> dict[int, int]:
    """How many batches of which size tritonserver says that it made."""
    server = next(
        process for process in family(running.process.pid) if process.name() == "tritonserver"
    )
    (port,) = {
        place.laddr.port
        for place in server.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
    }
    body = (
        "import tritonclient.grpc as grpc\n"
        f"client = grpc.InferenceServerClient('127.0.0.1:{port}')\n"
        "import json; print(json.dumps(client.get_inference_statistics('llm', as_json=True)))"
    )
    told = json.loads(run_inside(Triton.locks["cpu"], body, Path("/")).stdout)
    batches = told["model_stats"][0]["batch_stats"]
    return {int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in batches}


@pytest.mark.slow
def test_it_listens_on_loopback_alone(running: Running) -> None:
    addresses = {
        place.laddr.ip.removeprefix("::ffff:")
        for process in family(running.process.pid)
        for place in process.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


@pytest.mark.slow
def test_clients_that_leave_by_the_hundred_do_not_bring_tritonserver_down(running: Running) -> None:
    """Where streams were cancelled, it crashed once in 600 to 3,000 of these."""
    body = {"prompt": "Hello", "max_tokens": 450, "stream": True}

    def leave(_: int) -> None:
        with client.stream("POST", f"{running.url}/v1/completions", json=body) as response:
            next(response.iter_lines())

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(leave, range(1000)))) == 1000
    assert Client(running.url).ask("Hello", max_tokens=3).completion_tokens == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_tritonserver_is_left_whatever_ends_its_launcher(
    number: signal.Signals, onnx_tiny: Path, tmp_path: Path
) -> None:
    with serve(
        onnx_tiny, TritonArgs(intra_op_num_threads=1), MACHINE_CACHE, tmp_path / "log"
    ) as engine:
        known = family(engine.process.pid)
        by_name = {process.name()[:15]: process for process in known}
        assert {"tritonserver", STUB} <= by_name.keys()
        if number == signal.SIGKILL:
            # As one is that waits for a lock which its server held when it was killed.
            by_name[STUB].suspend()
        os.kill(engine.process.pid, number)
        assert left_of(known) == []


@pytest.mark.slow
def test_a_tritonserver_that_dies_ends_its_launcher(onnx_tiny: Path, tmp_path: Path) -> None:
    with serve(
        onnx_tiny, TritonArgs(intra_op_num_threads=1), MACHINE_CACHE, tmp_path / "log"
    ) as engine:
        known = family(engine.process.pid)
        next(process for process in known if process.name() == "tritonserver").kill()
        assert left_of(known) == []
        assert "tritonserver ended with status -9" in engine.process.tail()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told_with_tritons_own_words(
    onnx_tiny: Path, tmp_path: Path
) -> None:
    for path in onnx_tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(Unavailable, match="Protobuf parsing failed"),
        serve(tmp_path, TritonArgs(), MACHINE_CACHE, tmp_path / "log"),
    ):
        pass
