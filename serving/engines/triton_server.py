"""Triton with an LLM on its python backend, and OpenAI's API in front. Runs inside the engine's
environment, by path.

tritonserver listens on a port of its own, on loopback alone. It dies with this process, whatever
this one dies of, and its model dies with it.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]

from weighbridge.core.parent_death import die_with_parent
from weighbridge.core.paths import PACKAGE
from weighbridge.core.processes import free_port, is_taken
from weighbridge.serving.engines.triton_repository import MODEL, python_backend
from weighbridge.serving.shim.hf_tokenizer import HfTokenizer
from weighbridge.serving.shim.protocol import Sampling, Token, TokenStream
from weighbridge.serving.shim.server import add_options, sampling_of, serve

HOST: Final = "127.0.0.1"
GRACE: Final = 5.0
PORTS_TRIED: Final = 3
OPTIONS: Final = (
    "context_length",
    "max_batch_size",
    "chunk_size",
    "intra_op_num_threads",
    "allow_spinning",
)
"""Options that the model behind Triton is given, as the engine `onnx` is."""


class TritonModel(HfTokenizer):
    """Asks Triton over gRPC; every thread that generates has a connection of its own."""

    def __init__(self, args: argparse.Namespace, address: str) -> None:
        super().__init__(args.model / "tokenizer")
        config = json.loads((args.model / "genai_config.json").read_text())
        self.context = min(args.context_length, config["model"]["context_length"])
        self.slots = args.max_batch_size
        self._address = address
        # A client of Triton's holds one stream at a time.
        self._own = threading.local()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Yield tokens as they come; closing the generator ends the request.

        By a request that says so: a stream that is cancelled can crash tritonserver (its issues
        7368 and 8034).
        """
        answers = self._ask(prompt, {"sampling": asdict(sampling)})
        try:
            while (result := answers.get()) is not None:
                token, values, top = (
                    result.as_numpy(name).ravel().tolist() for name in ("token", "logprobs", "top")
                )
                yield Token(
                    token[0],
                    values[0] if values else None,
                    tuple(zip(top, values[1:], strict=True)),
                )
        finally:
            if not answers.ended:
                # Triton wants every input of the model, and this one is not looked at.
                self._tell(prompt[:1], {"stop": answers.request})
            self._client().stop_stream()

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Return the natural-log probability of every completion token."""
        answers = self._ask(prompt, {"completion": list(completion)})
        try:
            values: list[float] = answers.get().as_numpy("logprobs").ravel().tolist()
            return values
        finally:
            self._client().stop_stream()

    def _client(self) -> Any:
        import tritonclient.grpc

        if not hasattr(self._own, "client"):
            self._own.client = tritonclient.grpc.InferenceServerClient(self._address)
        return self._own.client

    def _ask(self, prompt: Sequence[int], order: dict[str, Any]) -> "Answers":
        answers = Answers()
        self._client().start_stream(answers.put)
        self._tell(prompt, {"id": answers.request, **order})
        return answers

    def _tell(self, prompt: Sequence[int], order: dict[str, Any]) -> None:
        import numpy as np
        from tritonclient.grpc import InferInput

        inputs = [
            InferInput("prompt", [1, len(prompt)], "INT32"),
            InferInput("order", [1, 1], "BYTES"),
        ]
        inputs[0].set_data_from_numpy(np.array([prompt], np.int32))
        inputs[1].set_data_from_numpy(np.array([[json.dumps(order).encode()]], object))
        self._client().async_stream_infer(MODEL, inputs, enable_empty_final_response=True)


class Answers:
    """Responses to one request."""

    def __init__(self) -> None:
        self.request: Final = uuid4().hex
        self.ended = False
        self._queue: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def put(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def get(self) -> Any:
        """Return the next one; None after the last."""
        result, error = self._queue.get()
        self.ended = (
            error is not None
            or result.get_response().parameters["triton_final_response"].bool_param
        )
        if error:
            raise RuntimeError(str(error))
        return None if self.ended else result


def check_libpython() -> None:
    """Exit where the shared library of this Python is missing, which not every build of it has and
    the python backend needs.
    """
    name = f"libpython3.{sys.version_info.minor}.so.1.0"
    try:
        ctypes.CDLL(name)
    except OSError:
        sys.exit(
            f"Triton's python backend needs {name}; "
            f"run: apt-get install libpython3.{sys.version_info.minor}"
        )


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start tritonserver over the repository in `folder`."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).with_name("tritonserver")
    command = [
        str(home / "bin" / "tritonserver"),
        f"--model-repository={folder / 'models'}",
        "--disable-auto-complete-config",
        f"--backend-directory={_backends(folder, home)}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--grpc-address={HOST}",
        f"--grpc-port={port}",
        "--log-info=false",
        f"--exit-timeout-secs={GRACE:.0f}",
    ]
    packages = home.parents[1]
    env = {
        **os.environ,
        # Where triton_model.py finds numpy: the backend's Python is isolated.
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
    }
    return subprocess.Popen(command, env=env, preexec_fn=partial(_beginning, os.getpid()))  # noqa: PLW1509 - it takes no lock


def _backends(folder: Path, home: Path) -> Path:
    """Return a folder with the python backend and, where that looks for it, this Python's stub."""
    backend = folder / "backends" / "python"
    if not backend.exists():
        backend.mkdir(parents=True)
        stub = (
            home
            / "python_backend_stubs"
            / f"3.{sys.version_info.minor}"
            / "triton_python_backend_stub"
        )
        for path in (stub, *(home / "backends" / "python").iterdir()):
            (backend / path.name).symlink_to(path)
    return backend.parent


def _beginning(parent: int) -> None:
    """Prepare tritonserver's process: it ends with this one, and ignores SIGTERM.

    A SIGTERM to the whole group is for this process, which lets answers end first.
    """
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def ready(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the model can be asked; False where the server has ended instead."""
    import tritonclient.grpc

    client = tritonclient.grpc.InferenceServerClient(f"{HOST}:{port}")
    while server.poll() is None:
        try:
            if client.is_model_ready(MODEL):
                return True
        except tritonclient.grpc.InferenceServerException:
            pass
        time.sleep(0.05)
    return False


def launch(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Return a tritonserver that is ready, and its port; another one where somebody was faster."""
    for _ in range(PORTS_TRIED):
        port = free_port(HOST)
        server = start(folder, port)
        if ready(server, port):
            return server, port
        if not is_taken(port, HOST):
            break
    sys.exit(f"tritonserver ended with status {server.returncode}")


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--model", type=Path, required=True)
    for name in ("context-length", "max-batch-size", "chunk-size", "max-queue-delay-microseconds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--intra-op-num-threads", type=int)
    parser.add_argument("--allow-spinning", action="store_true")
    args = parser.parse_args()
    check_libpython()
    parameters = {"root": str(PACKAGE), "model": str(args.model)}
    parameters["options"] = json.dumps({name: getattr(args, name) for name in OPTIONS})
    # Once the model is loaded nothing reads the folder any more: gone at once, no end of this
    # process can leave it.
    with tempfile.TemporaryDirectory(prefix="weighbridge-triton-") as folder:
        python_backend(
            Path(folder) / "models",
            Path(__file__).with_name("triton_model.py"),
            parameters,
            vars(args),
        )
        server, port = launch(Path(folder))
    stopping = threading.Event()
    threading.Thread(target=_end_with, args=(server, stopping), daemon=True).start()
    try:
        serve(
            lambda: TritonModel(args, f"{HOST}:{port}"),
            args.host,
            args.port,
            args.alias,
            sampling=sampling_of(args),
        )
    finally:
        stopping.set()
        _stop(server)


def _end_with(server: subprocess.Popen[bytes], stopping: threading.Event) -> None:
    """End this process when tritonserver has ended: there is nothing to serve then."""
    server.wait()
    if not stopping.is_set():
        sys.stderr.write(f"tritonserver ended with status {server.returncode}\n")
        os.kill(os.getpid(), signal.SIGTERM)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop it by SIGINT: SIGTERM is blocked in it."""
    server.send_signal(signal.SIGINT)
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
