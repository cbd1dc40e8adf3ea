"""A file at a place from which it can be fetched."""

from pydantic import BaseModel, Field


class RemoteFile(BaseModel):
    """One file a source offers."""

    path: str = Field(description="Relative, with forward slashes.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(
        "", description="Published hex digest; empty where the source publishes none."
    )
    git_sha1: str = Field("", description="Published git blob id; empty where there is none.")
    version: str = Field(
        "", description="What else names this content at the source: an ETag, a modification time."
    )
