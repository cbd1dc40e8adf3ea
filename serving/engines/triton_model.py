"""The model on Triton's python backend: ONNX Runtime, batched continuously, a token per response.

Triton loads this file into a process of its own, with a Python of its own: `root` in the model's
parameters says where our packages are, `options` the options that the engine was given.
"""

import json
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

# The backend's Python is isolated, and its own packages are none of ours.
sys.path.insert(0, os.environ["PYTHONPATH"])

import numpy as np
import triton_python_backend_utils as pb

POLL = 0.2


class TritonPythonModel:
    """What the backend asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model named in the parameters."""
        _end_with_parent()
        parameters = {
            name: value["string_value"]
            for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
        package.__path__ = [parameters["root"]]
        # Only now does this Python know the package.
        from weighbridge.serving.engines.onnx_server import OnnxModel, options

        self._model = OnnxModel(
            options(Path(parameters["model"]), json.loads(parameters["options"]))
        )
        self._stopped: dict[str, threading.Event] = {}

    def execute(self, requests: list[Any]) -> None:
        """Begin every answer of a batch; none waits for another."""
        for request in requests:
            order = json.loads(pb.get_input_tensor_by_name(request, "order").as_numpy().ravel()[0])
            sender = request.get_response_sender()
            if "stop" in order:
                if stopped := self._stopped.get(order["stop"]):
                    stopped.set()
                sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            self._stopped[order["id"]] = threading.Event()
            threading.Thread(
                target=self._answer, args=(request, order, sender), daemon=True
            ).start()

    def _answer(self, request: Any, order: dict[str, Any], sender: Any) -> None:
        try:
            prompt = pb.get_input_tensor_by_name(request, "prompt").as_numpy().ravel().tolist()
            if "completion" in order:
                values = self._model.logprobs(prompt, order["completion"])
                sender.send(_response(0, values, []))
            else:
                self._stream(sender, prompt, order)
        except Exception as exc:  # whatever it is, it must reach who asked
            sender.send(pb.InferenceResponse(error=pb.TritonError(f"{type(exc).__name__}: {exc}")))
        finally:
            del self._stopped[order["id"]]
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _stream(self, sender: Any, prompt: list[int], order: dict[str, Any]) -> None:
        from weighbridge.serving.shim.protocol import Sampling

        stopped = self._stopped[order["id"]]
        for token in self._model.generate(prompt, Sampling(**order["sampling"])):
            if stopped.is_set():
                return
            values = (
                [] if token.logprob is None else [token.logprob, *(value for _, value in token.top)]
            )
            sender.send(_response(token.id, values, [other for other, _ in token.top]))


def _response(token: int, logprobs: list[float], top: list[int]) -> Any:
    return pb.InferenceResponse(
        [
            pb.Tensor("token", np.array([[token]], np.int32)),
            pb.Tensor("logprobs", np.array([logprobs], np.float32)),
            pb.Tensor("top", np.array([top], np.int32)),
        ]
    )


def _end_with_parent() -> None:
    """End this process when tritonserver has ended, which, killed, takes no leave of its models."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
