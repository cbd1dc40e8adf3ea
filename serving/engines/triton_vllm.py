"""NVIDIA Triton with its vLLM backend, behind Triton's own OpenAI server: what NVIDIA's container
brings along.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.errors import Unavailable
from weighbridge.serving.engines.base import Capabilities, EngineArgs

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
    quantization: str | None = Field(
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


class TritonVllm:
    """Serves a folder of safetensors."""

    name: ClassVar[str] = "triton_vllm"
    Args: ClassVar[type[EngineArgs]] = TritonVllmArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors", "compressed_tensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cuda": Path(__file__).with_name("triton.lock")}
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}), metrics=True, extras={"not run": NOT_RUN}
    )
    health: ClassVar[str] = "/health/ready"

    def device(self, args: TritonVllmArgs) -> str:
        """A GPU, or nothing."""
        return "cuda"

    def check(self, args: TritonVllmArgs, model: Path | None = None) -> None:
        """Raises Unavailable outside Triton's container."""
        if not args.frontend.exists():
            wrong = f"there is no {args.frontend}"
            remedy = "run inside the image nvcr.io/nvidia/tritonserver:<release>-vllm-python-py3, or set `frontend`"
            raise Unavailable("starting triton_vllm", wrong, remedy)

    def command(
        self, model: Path, args: TritonVllmArgs, host: str, port: int, python: Path
    ) -> list[str]:
        """Our launcher, which writes the model repository and gives its place to Triton's server."""
        self.check(args)
        options = args.model_dump(exclude={"frontend", *EngineArgs.model_fields}, exclude_none=True)
        words = [str(args.frontend), str(model), host, str(port), json.dumps(options)]
        return [str(python), "-I", str(LAUNCHER), *words]

    def env(self, args: TritonVllmArgs) -> dict[str, str]:
        """It serves a folder: nothing is to be looked up, and nothing told."""
        return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

    def tunings(self, args: TritonVllmArgs, cores: int) -> Sequence[TritonVllmArgs]:
        """As it is: vLLM sizes itself to the GPU."""
        return [args]

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Triton's OpenAI server passes no prompt log-probabilities on."""
        raise NotImplementedError(
            "Triton's OpenAI server tells no log-probabilities of given tokens"
        )

    def tokenize(self, url: str, text: str) -> Any:
        """Triton's OpenAI server has no route for it."""
        raise NotImplementedError("Triton's OpenAI server has no route that tells tokens")
