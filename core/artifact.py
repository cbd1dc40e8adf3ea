"""An artifact: a folder of files, named by the digest of what is in it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from weighbridge.core.errors import Unavailable

Format = Literal["safetensors", "compressed_tensors", "peft", "gguf", "onnx", "jsonl", "bento"]


class File(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the artifact's folder, with forward slashes.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Hex digest of the content.")


class Artifact(BaseModel):
    """A verified folder in the store.

    Its identity is its digest. Where it lies is a matter of each machine, and so is never written
    down: a store says it, of what it made and of what was read from a record (`Store.bind`).
    """

    model_config = ConfigDict(frozen=True)

    digest: str = Field(
        description="`sha256:` and the hex digest of the file list; see `digest_of`."
    )
    format: Format
    size: int = Field(description="Bytes of all files together.")
    origin: dict[str, str] = Field(
        default_factory=dict, description="Where it came from: uri, revision, …"
    )
    _locate: Callable[[str], Path] | None = PrivateAttr(None)

    @property
    def path(self) -> Path:
        """Return the folder on this machine, read-only; fetched first where only the shared store
        has it.

        Raises:
            Unavailable: it is neither in this machine's store nor in the shared one.
        """
        if self._locate is None:
            raise Unavailable(f"opening artifact {self.short}", "it is in no store of this machine")
        return self._locate(self.digest)

    def located_by(self, locate: Callable[[str], Path]) -> Self:
        """Let `locate` say where the folder of this digest is, from now on; return the artifact."""
        self._locate = locate
        return self

    def __eq__(self, other: object) -> bool:
        # Without the store: the same artifact in two homes is one.
        return isinstance(other, Artifact) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def short(self) -> str:
        """Return the first 12 hex digits, for people."""
        return self.digest.removeprefix("sha256:")[:12]


def digest_of(files: Iterable[File]) -> str:
    """Return the digest of a file list.

    It is sha256 over sorted `<sha256>  <path>` lines, the format of sha256sum.
    """
    lines = sorted(f"{file.sha256}  {file.path}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def artifacts_in(value: Any) -> Iterator[Artifact]:
    """Yield every artifact inside a value, such as a stage's result."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from artifacts_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from artifacts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from artifacts_in(item)


def recorded_in(value: Any) -> Iterator[tuple[str, str]]:
    """Yield digest and format of every artifact in the JSON of a stage's record.

    Among what identifies the stage, an artifact is its digest and format alone (`canonical`).
    """
    if isinstance(value, Mapping):
        if "format" in value:
            yield from (
                (str(value[key]), str(value["format"]))
                for key in ("digest", "artifact")
                if key in value
            )
        for item in value.values():
            yield from recorded_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from recorded_in(item)
