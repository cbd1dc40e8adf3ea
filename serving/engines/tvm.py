"""Apache TVM: a Llama compiled for this processor through relax when the server starts, behind a
server of ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.field_types import Word
from weighbridge.serving.engines.base import AUTO_CONTEXT, AUTO_SLOTS, Capabilities, EngineArgs
from weighbridge.serving.engines.command_line import variations
from weighbridge.serving.engines.onnx import MOST_SLOTS
from weighbridge.serving.engines.shim_engine import ShimEngine


class TvmArgs(EngineArgs):
    """Options of our server, under the names that TVM's own cache and runtime give them."""

    kind: Literal["tvm"] = "tvm"
    num_threads: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Threads that compute, as TVM_NUM_THREADS; open: measured, or one.",
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Answers decoded together; open: the highest `weigh.concurrency`.",
    )
    max_total_seq_len: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer; open: `weigh.context`."
    )
    prefill_chunk_size: int = Field(
        256,
        ge=1,
        description="Most tokens of a prompt read in one step, between which other answers go on.",
    )
    alias: Word = Field("model", description="Name of the model in `/v1/models`.")


class Tvm(ShimEngine[TvmArgs]):
    """Serves a folder of safetensors, in 32 bits."""

    name: ClassVar[str] = "tvm"
    Args: ClassVar[type[EngineArgs]] = TvmArgs
    name_option: ClassVar[str] = "alias"
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_suffix(".lock")}
    packages: ClassVar[tuple[str, ...]] = ("apache-tvm",)
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(
        metrics=True, extras={"models": "LlamaForCausalLM without scaled positions"}
    )
    server: ClassVar[Path] = Path(__file__).with_name("tvm_server.py")
    takes_sizes: ClassVar[bool] = True

    def options(self) -> Mapping[str, object]:
        """Return the options of our server."""
        return {
            "alias": self.args.alias,
            **self.args.sampling(),
            # The server takes the model's own where that is less.
            "context_length": self.args.max_total_seq_len or AUTO_CONTEXT,
            "max_batch_size": self.args.max_batch_size or AUTO_SLOTS,
            "chunk_size": self.args.prefill_chunk_size,
        }

    def env(self) -> dict[str, str]:
        """Return the number of threads: one where nobody says.

        TVM would take every core, and threads that wait spin beside other work.
        """
        return {"TVM_NUM_THREADS": str(self.args.num_threads or 1)}

    def sized_for(self, model: Path, tokens: int, answers: int) -> TvmArgs:
        """Return the arguments with room for so many answers of so many tokens each."""
        sizes = {
            "max_batch_size": self.args.max_batch_size or min(answers, MOST_SLOTS),
            "max_total_seq_len": self.args.max_total_seq_len or tokens,
        }
        return self.args.model_copy(update=sizes)

    def tunings(self, cores: int) -> Sequence[TvmArgs]:
        """Return every choice of threads, where they are left open."""
        return variations(self.args, num_threads=sorted({1, cores}))
