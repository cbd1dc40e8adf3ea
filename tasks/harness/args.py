"""Tasks of lm-evaluation-harness, as a recipe names them."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class HarnessArgs(BaseModel):
    """Tasks that every candidate is asked beside the rows; their scores choose nobody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[str] = Field(min_length=1, description="Names of tasks.")
    include_path: Path | None = Field(
        None,
        description="Folder with tasks of your own. Code that they name is run: trust it first.",
    )
    limit: int | None = Field(None, ge=1, description="Only so many documents of each task.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Examples before each question; open: as the task says."
    )
    chat: bool = Field(
        True, description="Ask as a chat; off: as plain text, without a chat template."
    )

    @field_validator("include_path")
    @classmethod
    def _is_there(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError("there is no such folder")
        # A worker has another working directory.
        return folder and folder.resolve()
