"""A recorded grid in place of an engine: searches are compared on it for nothing.

Nothing is started and nothing served: the search looks up what the record has of a setting
(`tasks/search/recorded.py`). So it is no engine that anything can be packaged or deployed with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

from pydantic import ConfigDict, Field

from weighbridge.core.artifact import Format
from weighbridge.core.errors import BadInput
from weighbridge.core.field_types import PathText
from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs


class ReplayArgs(EngineArgs):
    """Which record, and what of it: any further option is one of the record's own, and keeps the
    lines with that value.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["replay"] = "replay"
    grid: PathText = Field(
        "", description="The recorded grid: a `grid.jsonl` that a weighing or a search has left."
    )
    seed: int = Field(0, ge=0, description="Another one gives other noise.")
    pace: float = Field(
        0.0, ge=0, description="Part of the recorded seconds that is really waited; 0: none."
    )


class Replay(Engine[ReplayArgs]):
    """Answers a search from a record."""

    name: ClassVar[str] = "replay"
    Args: ClassVar[type[EngineArgs]] = ReplayArgs
    formats: ClassVar[frozenset[Format]] = frozenset(
        {"safetensors", "compressed_tensors", "gguf", "onnx"}
    )
    locks: ClassVar[Mapping[str, Path]] = {}
    capabilities: ClassVar[Capabilities] = Capabilities(
        extras={"not run": "it serves nothing: it answers searches from a record"}
    )

    def record(self) -> Path:
        """Return the file that answers."""
        return Path(self.args.grid)

    def check(self, model: Path | None = None) -> None:
        """Raise BadInput where there is no such file."""
        grid = self.args.grid
        if not self.record().is_file():
            raise BadInput(
                "replaying a recorded grid",
                f"there is no file {grid}" if grid else "`grid` is not given",
                "give the grid.jsonl of a weighing or a search",
            )

    def command(self, model: Path, host: str, port: int, python: Path) -> NoReturn:
        """Refuse: there is no server."""
        self._refuse()

    def lock(self) -> NoReturn:
        """Refuse: nothing can be served, packaged or deployed with it."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BadInput(
            f"serving with {self.name}",
            "it serves nothing: it answers searches from a record",
            "name the engine that is to serve",
        )
