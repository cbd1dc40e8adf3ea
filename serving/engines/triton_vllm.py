"""NVIDIA Triton with its vLLM backend, behind Triton's own OpenAI server: what NVIDIA's container
brings along.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.errors import Unavailable
from weighbridge.core.field_types import Word
from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs
from weighbridge.serving.engines.command_line import guarded

LAUNCHER: Final = Path(__file__).with_name("triton_vllm_server.py")
NOT_RUN: Final = "Triton's vLLM backend comes in NVIDIA's container alone, and needs a CUDA GPU"


class TritonVllmArgs(EngineArgs):
    """vLLM's options under its own names, which the backend reads from `model.json`."""

    kind: Literal["triton_vllm"] = "triton_vllm"
    start_timeout: float = Field(
        900.0, gt=0, description="Seconds until the first real token must have come."
    )
    frontend: Path = Field(
        Path("/opt/tritonserver/python/openai/openai_frontend/main.py"),
        description="Triton's OpenAI server, where its container has it.",
    )
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = Field(
        "auto", description="Number format of weights and activations."
    )
    quantization: Word | None = Field(
        None, description="Such as `fp8`; open: as the model's configuration says."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Tokens of context; open: the model's own."
    )
    max_num_seqs: int | None = Field(None, ge=1, description="Requests decoded together.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the GPU's memory it may take."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs one copy of the model is spread over."
    )
    enforce_eager: bool = Field(False, description="No CUDA graphs: starts faster, answers slower.")


class TritonVllm(Engine[TritonVllmArgs]):
    """Serves a folder of safetensors."""

    name: ClassVar[str] = "triton_vllm"
    Args: ClassVar[type[EngineArgs]] = TritonVllmArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors", "compressed_tensors"})
    # Of our launcher alone: the engine comes with the container.
    locks: ClassVar[Mapping[str, Path]] = {"cuda": Path(__file__).with_name("triton.lock")}
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}), metrics=True, extras={"not run": NOT_RUN}
    )
    numerics: ClassVar[frozenset[str]] = frozenset({"dtype", "quantization"})
    health: ClassVar[str] = "/health/ready"

    def device(self) -> str:
        """Return `cuda`: there is no build for anything else."""
        return "cuda"

    def check(self, model: Path | None = None) -> None:
        """Raise Unavailable outside Triton's container."""
        if not self.args.frontend.exists():
            wrong = f"there is no {self.args.frontend}"
            image = "nvcr.io/nvidia/tritonserver:<release>-vllm-python-py3"
            remedy = f"run inside the image {image}, or set `frontend`"
            raise Unavailable("starting triton_vllm", wrong, remedy)

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of our launcher, which writes the model repository for Triton's
        server; no process of it outlives the first one.
        """
        self.check()
        args = self.args
        options = args.model_dump(exclude={"frontend", *EngineArgs.model_fields}, exclude_none=True)
        arguments = [str(args.frontend), str(model), host, str(port), json.dumps(options)]
        return guarded([str(python), "-I", str(LAUNCHER), *arguments], python)

    def env(self) -> dict[str, str]:
        """Return variables by which it looks nothing up and reports nothing: it serves a folder."""
        return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
