"""The engine `numpy`, as Weighbridge finds it: its options, and how its server is started."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field

from weighbridge.plugins import PACKAGE, Capabilities, EngineArgs, Format, ShimEngine, variations

HERE: Final = Path(__file__).parent


class NumpyArgs(EngineArgs):
    """Options that a recipe may give."""

    kind: Literal["numpy"] = "numpy"
    slots: int = Field(1, ge=1, le=16, description="Answers generated at a time; others wait.")
    threads: int | None = Field(None, ge=1, description="Threads of the linear algebra library.")


class Numpy(ShimEngine[NumpyArgs]):
    """Serves Llama models in float32."""

    name: ClassVar[str] = "numpy"
    Args: ClassVar[type[EngineArgs]] = NumpyArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": HERE / "numpy_engine.lock"}
    packages: ClassVar[tuple[str, ...]] = ("numpy",)
    capabilities: ClassVar[Capabilities] = Capabilities(metrics=True)
    server: ClassVar[Path] = HERE / "server.py"

    def options(self) -> Mapping[str, object]:
        """Return the options of server.py besides model, host and port."""
        # The server's environment does not hold Weighbridge: it is told where its packages lie.
        return {"weighbridge": PACKAGE, "slots": self.args.slots}

    def env(self) -> dict[str, str]:
        """Return the number of threads, which the library reads from here alone."""
        threads = self.args.threads
        return {"OPENBLAS_NUM_THREADS": str(threads)} if threads else {}

    def tunings(self, cores: int) -> Sequence[NumpyArgs]:
        """Return one thread and all cores to be measured, unless the recipe chose."""
        return variations(self.args, threads=sorted({1, cores}))
