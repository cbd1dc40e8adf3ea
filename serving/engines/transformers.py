"""Hugging Face transformers behind the shim: slow, and the reference that every other engine is
measured against.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.field_types import Word
from weighbridge.serving.engines.base import Capabilities, EngineArgs
from weighbridge.serving.engines.command_line import variations
from weighbridge.serving.engines.shim_engine import ShimEngine

LOCK: Final = Path(__file__).with_suffix(".lock")


class TransformersArgs(EngineArgs):
    """Options of `from_pretrained`, under their own names, and how much is done at a time."""

    kind: Literal["transformers"] = "transformers"
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where the model lies.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the model's own."
    )
    attn_implementation: Literal["eager", "sdpa"] = Field(
        "sdpa", description="How attention is computed."
    )
    threads: int | None = Field(None, ge=1, le=512, description="Threads that compute.")
    slots: int = Field(
        1, ge=1, le=64, description="Answers generated at a time, each by itself; others wait."
    )
    max_length: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer; open: the model's own."
    )
    alias: Word = Field("model", description="Name of the model in `/v1/models`.")


class Transformers(ShimEngine[TransformersArgs]):
    """Serves a folder of safetensors, one answer after another."""

    name: ClassVar[str] = "transformers"
    Args: ClassVar[type[EngineArgs]] = TransformersArgs
    name_option: ClassVar[str] = "alias"
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": LOCK, "cuda": LOCK}
    packages: ClassVar[tuple[str, ...]] = ("transformers", "torch")
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu", "cuda"}), metrics=True
    )
    numerics: ClassVar[frozenset[str]] = frozenset({"dtype"})
    server: ClassVar[Path] = Path(__file__).with_name("transformers_server.py")

    def device(self) -> str:
        """Return the device that was given: the reference runs on the processor, GPU or not."""
        return self.args.device

    def options(self) -> Mapping[str, object]:
        """Return the options of our server, which are called like ours."""
        own = self.args.model_dump(exclude=set(EngineArgs.model_fields))
        return {**own, **self.args.sampling()}

    def env(self) -> dict[str, str]:
        """Return variables by which nothing is looked up elsewhere, and threads that wait for each
        other sleep.
        """
        return {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        }

    def tunings(self, cores: int) -> Sequence[TransformersArgs]:
        """Return numbers of threads to try; on another device they don't matter."""
        if self.args.device != "cpu":
            return [self.args]
        return variations(self.args, threads=sorted({max(1, cores // 2), cores}))
