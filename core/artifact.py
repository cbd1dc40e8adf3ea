"""An artifact: a folder of files, named by the digest of what is in it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal["safetensors", "compressed_tensors", "peft", "gguf", "onnx", "jsonl", "bento"]


class File(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the artifact's folder, with forward slashes.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Hex digest of the content.")


class Artifact(BaseModel):
    """A verified folder in the store."""

    model_config = ConfigDict(frozen=True)

    digest: str = Field(
        description="`sha256:` and the hex digest of the file list; see `digest_of`."
    )
    format: Format
    path: Path = Field(description="The folder in the local store. Read-only.")
    size: int = Field(description="Bytes of all files together.")
    origin: dict[str, str] = Field(
        default_factory=dict, description="Where it came from: uri, revision, …"
    )

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
