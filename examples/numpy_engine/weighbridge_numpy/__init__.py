"""The engine `numpy`, as Weighbridge finds it: options, command line, and how the running server is
asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field

from weighbridge import serving
from weighbridge.core.artifact import Format
from weighbridge.serving.engines.base import Capabilities, EngineArgs
from weighbridge.serving.engines.shim_engine import ShimEngine

HERE: Final = Path(__file__).parent
WEIGHBRIDGE: Final = Path(serving.__file__).parent.parent
"""Where the server finds `weighbridge.serving.shim`: its environment does not hold Weighbridge."""


class NumpyArgs(EngineArgs):
    """What can be chosen."""

    kind: Literal["numpy"] = "numpy"
    slots: int = Field(1, ge=1, le=16, description="Answers generated at a time; others wait.")
    threads: int | None = Field(None, ge=1, description="Threads of the linear algebra library.")


class Numpy(ShimEngine):
    """Serves Llama models in float32."""

    name: ClassVar[str] = "numpy"
    Args: ClassVar[type[EngineArgs]] = NumpyArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": HERE / "numpy_engine.lock"}
    packages: ClassVar[tuple[str, ...]] = ("numpy",)
    capabilities: ClassVar[Capabilities] = Capabilities(metrics=True)

    def device(self, args: NumpyArgs) -> str:
        return "cpu"

    def command(
        self, model: Path, args: NumpyArgs, host: str, port: int, python: Path
    ) -> list[str]:
        program = [str(python), "-I", str(HERE / "server.py"), "--weighbridge", str(WEIGHBRIDGE)]
        options = [
            "--model",
            str(model),
            "--host",
            host,
            "--port",
            str(port),
            "--slots",
            str(args.slots),
        ]
        return [*program, *options]

    def env(self, args: NumpyArgs) -> dict[str, str]:
        return {"OPENBLAS_NUM_THREADS": str(args.threads)} if args.threads else {}

    def tunings(self, args: NumpyArgs, cores: int) -> Sequence[NumpyArgs]:
        if args.threads:
            return [args]
        return [args.model_copy(update={"threads": count}) for count in sorted({1, cores})]
