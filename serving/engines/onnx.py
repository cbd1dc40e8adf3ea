"""ONNX Runtime over the graphs that onnxruntime-genai's builder makes, batched continuously behind
a server of ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal, Self

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.serving.engines.base import Capabilities, EngineArgs
from weighbridge.serving.engines.shim_engine import ShimEngine

SERVER: Final = Path(__file__).with_name("onnx_server.py")
AUTO_SLOTS: Final = 4
AUTO_CONTEXT: Final = 4096
"""Most tokens of context when nobody says how many: a long-context model would eat all memory."""


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
        description="Threads that wait stay awake: a little faster alone, far slower beside other work.",
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=256, description="Answers decoded together; open: measured."
    )
    context_length: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer; open: the model's own, up to 4096."
    )
    chunk_size: int = Field(
        256,
        ge=1,
        description="Most tokens of a prompt read in one step, between which other answers go on.",
    )
    alias: str = Field("model", min_length=1, description="Name of the model in `/v1/models`.")

    def words(self, model: Path, host: str, port: int) -> list[str]:
        """The command line of a server of ours over the model."""
        given: dict[str, object] = {
            "model": model,
            "host": host,
            "port": port,
            "alias": self.alias,
            "context-length": self.context_length or AUTO_CONTEXT,
            "max-batch-size": self.max_batch_size or AUTO_SLOTS,
            "chunk-size": self.chunk_size,
            "intra-op-num-threads": self.intra_op_num_threads,
        }
        words = [
            word
            for name, value in given.items()
            if value is not None
            for word in (f"--{name}", str(value))
        ]
        return [*words, *(["--allow-spinning"] if self.allow_spinning else [])]

    def tunings(self, cores: int) -> list[Self]:
        """Every number of threads worth trying with every number of slots worth trying."""
        given = self.intra_op_num_threads
        threads = [given] if given else sorted({1, max(1, cores // 2), cores})
        slots = [self.max_batch_size] if self.max_batch_size else [4, 8]
        return [
            self.model_copy(update={"intra_op_num_threads": t, "max_batch_size": s})
            for t in threads
            for s in slots
        ]


class OnnxArgs(DecoderArgs):
    """Options of our server around ONNX Runtime."""

    kind: Literal["onnx"] = "onnx"


class Onnx(ShimEngine[OnnxArgs]):
    """Serves one decoder graph with its tokenizer."""

    name: ClassVar[str] = "onnx"
    Args: ClassVar[type[EngineArgs]] = OnnxArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_suffix(".lock")}
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    capabilities: ClassVar[Capabilities] = Capabilities(devices=frozenset({"cpu"}), metrics=True)

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of our server in the locked environment."""
        return [str(python), "-I", str(SERVER), *self.args.words(model, host, port)]

    def tunings(self, cores: int) -> Sequence[OnnxArgs]:
        """Return every choice of threads and slots, where they are left open."""
        return self.args.tunings(cores)
