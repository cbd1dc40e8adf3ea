"""Triton's model repository: written from Triton's own protobuf, so that a field it does not know
is an error here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL = "llm"


def python_backend(
    folder: Path, program: Path, parameters: Mapping[str, str], args: Mapping[str, Any]
) -> Path:
    """Write a repository with one model on the python backend, which streams a token per response,
    and return its folder.
    """
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (version / "model.py").symlink_to(program)
    config = {
        "backend": "python",
        "max_batch_size": args["max_batch_size"],
        # Prompts differ in length: without this only equally long ones would share a batch.
        "input": [
            {"name": "prompt", "data_type": "TYPE_INT32", "dims": [-1], "allow_ragged_batch": True},
            {"name": "order", "data_type": "TYPE_STRING", "dims": [1]},
        ],
        "output": [
            {"name": "token", "data_type": "TYPE_INT32", "dims": [1]},
            {"name": "logprobs", "data_type": "TYPE_FP32", "dims": [-1]},
            {"name": "top", "data_type": "TYPE_INT32", "dims": [-1]},
        ],
        # Decoupled: one request has many responses, a token in each.
        "model_transaction_policy": {"decoupled": True},
        "dynamic_batching": {"max_queue_delay_microseconds": args["max_queue_delay_microseconds"]},
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    write_config(folder / MODEL, config)
    return folder


def vllm_backend(folder: Path, model: Path, engine_args: Mapping[str, Any]) -> Path:
    """Write a repository with one model on Triton's vLLM backend, which takes vLLM's own options
    from `model.json`, and return its folder.
    """
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (version / "model.json").write_text(json.dumps({"model": str(model), **engine_args}, indent=1))
    write_config(
        folder / MODEL, {"backend": "vllm", "instance_group": [{"kind": "KIND_MODEL", "count": 1}]}
    )
    return folder


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.pbtxt` of a model.

    Raises google.protobuf's ParseError for anything that Triton's own schema lacks.
    """
    from google.protobuf import text_format
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    message = ParseDict({"name": folder.name, **config}, ModelConfig())
    (folder / "config.pbtxt").write_text(text_format.MessageToString(message))
