"""NVIDIA Triton with an LLM on its python backend: the graphs that the engine `onnx` serves, behind
Triton's scheduler.

tritonserver comes in the wheel of pytriton, with the python backend alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.serving.engines.base import Capabilities, EngineArgs
from weighbridge.serving.engines.command_line import guarded
from weighbridge.serving.engines.onnx import DecoderArgs
from weighbridge.serving.engines.shim_engine import ShimEngine


class TritonArgs(DecoderArgs):
    """Options under the names that Triton's model configuration and ONNX Runtime give them."""

    kind: Literal["triton"] = "triton"
    max_queue_delay_microseconds: int = Field(
        100,
        ge=0,
        description="How long the dynamic batcher waits for requests to hand on together.",
    )


class Triton(ShimEngine[TritonArgs]):
    """Serves one decoder graph with its tokenizer."""

    name: ClassVar[str] = "triton"
    Args: ClassVar[type[EngineArgs]] = TritonArgs
    name_option: ClassVar[str] = "alias"
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_suffix(".lock")}
    packages: ClassVar[tuple[str, ...]] = ("nvidia-pytriton", "onnxruntime")
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(metrics=True)
    server: ClassVar[Path] = Path(__file__).with_name("triton_server.py")
    takes_sizes: ClassVar[bool] = True

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of the script, of which no process outlives the first one.

        The backend's own, in which the model runs, may sleep on for a minute after tritonserver was
        killed: it waits for a lock in memory that both share.
        """
        return guarded(super().command(model, host, port, python), python)

    def options(self) -> Mapping[str, object]:
        """Return the options of our launcher of tritonserver."""
        delay = self.args.max_queue_delay_microseconds
        return {**self.args.options(), "max_queue_delay_microseconds": delay}

    def sized_for(self, model: Path, tokens: int, answers: int) -> TritonArgs:
        """Return the arguments with room for so many answers of so many tokens each."""
        return self.args.sized_for(tokens, answers)

    def tunings(self, cores: int) -> Sequence[TritonArgs]:
        """Return every choice of threads, where they are left open."""
        return self.args.tunings(cores)
