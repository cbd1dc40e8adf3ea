"""ONNX Runtime over the graphs that onnxruntime-genai's builder makes, batched continuously behind
a server of ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.field_types import Word
from weighbridge.serving.engines.base import AUTO_CONTEXT, AUTO_SLOTS, Capabilities, EngineArgs
from weighbridge.serving.engines.command_line import variations
from weighbridge.serving.engines.shim_engine import ShimEngine

MOST_SLOTS = 256
"""As many answers as our server decodes together."""


class DecoderArgs(EngineArgs):
    """What one can say about a batched decoder, under the names that ONNX Runtime and its generate
    extension use.
    """

    intra_op_num_threads: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Threads that compute; open: measured, or half of the cores.",
    )
    allow_spinning: bool = Field(
        False,
        description="Threads that wait stay awake: a little faster alone, "
        "far slower beside other work.",
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Answers decoded together; open: the highest `weigh.concurrency`.",
    )
    context_length: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer; open: `weigh.context`."
    )
    chunk_size: int = Field(
        256,
        ge=1,
        description="Most tokens of a prompt read in one step, between which other answers go on.",
    )
    alias: Word = Field("model", description="Name of the model in `/v1/models`.")

    def options(self) -> dict[str, object]:
        """Return the options of a server of ours over the model."""
        return {
            "alias": self.alias,
            **self.sampling(),
            # The server takes the model's own where that is less.
            "context_length": self.context_length or AUTO_CONTEXT,
            "max_batch_size": self.max_batch_size or AUTO_SLOTS,
            "chunk_size": self.chunk_size,
            "intra_op_num_threads": self.intra_op_num_threads,
            "allow_spinning": self.allow_spinning,
        }

    def sized_for(self, tokens: int, answers: int) -> Self:
        """Return the arguments with room for so many answers of so many tokens each."""
        sizes = {
            "max_batch_size": self.max_batch_size or min(answers, MOST_SLOTS),
            "context_length": self.context_length or tokens,
        }
        return self.model_copy(update=sizes)

    def tunings(self, cores: int) -> list[Self]:
        """Return every number of threads worth trying."""
        return variations(self, intra_op_num_threads=sorted({1, max(1, cores // 2), cores}))


class OnnxArgs(DecoderArgs):
    """Options of our server around ONNX Runtime."""

    kind: Literal["onnx"] = "onnx"


class Onnx(ShimEngine[OnnxArgs]):
    """Serves one decoder graph with its tokenizer."""

    name: ClassVar[str] = "onnx"
    Args: ClassVar[type[EngineArgs]] = OnnxArgs
    name_option: ClassVar[str] = "alias"
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_suffix(".lock")}
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(metrics=True)
    server: ClassVar[Path] = Path(__file__).with_name("onnx_server.py")
    takes_sizes: ClassVar[bool] = True

    def options(self) -> Mapping[str, object]:
        """Return the options of our server."""
        return self.args.options()

    def sized_for(self, model: Path, tokens: int, answers: int) -> OnnxArgs:
        """Return the arguments with room for so many answers of so many tokens each."""
        return self.args.sized_for(tokens, answers)

    def tunings(self, cores: int) -> Sequence[OnnxArgs]:
        """Return every choice of threads, where they are left open."""
        return self.args.tunings(cores)
