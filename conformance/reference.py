"""The expected answers, as data: they are made where transformers is installed."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import BadInput


class Tokens(BaseModel):
    """A text and its token ids, special tokens parsed and none added."""

    model_config = ConfigDict(frozen=True)

    text: str
    ids: list[int]


class Question(BaseModel):
    """A prompt with its greedy answer."""

    model_config = ConfigDict(frozen=True)

    name: str
    prompt: str | list[dict[str, str]] = Field(description="Plain text, or the messages of a chat.")
    prompt_ids: list[int] = Field(description="The prompt as the model reads it.")
    answer: str
    answer_ids: list[int] = Field(description="Without the token that ends it.")

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)

    def body(self, **options: Any) -> dict[str, Any]:
        """Return a request that asks it."""
        prompt = {"messages": self.prompt} if self.chat else {"prompt": self.prompt}
        return {
            "model": "model",
            "temperature": 0,
            # A few more than it needs: an engine that does not end is seen, and soon cut off.
            "max_tokens": len(self.answer_ids) + 8,
            **prompt,
            **options,
        }


class Scored(BaseModel):
    """Natural-log probabilities of a completion's tokens."""

    model_config = ConfigDict(frozen=True)

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]


class Reference(BaseModel):
    """Everything the checks compare with. Names of questions: see `conformance/model.py`."""

    model_config = ConfigDict(frozen=True)

    made_by: str = Field(description="Library and version that the answers come from.")
    context: int = Field(description="Most tokens of prompt and answer together.")
    texts: list[Tokens]
    questions: list[Question]
    scored: list[Scored] = []

    def question(self, name: str) -> Question:
        """Return the question of that name.

        Raises:
            BadInput: There is none.
        """
        for question in self.questions:
            if question.name == name:
                return question
        raise BadInput(
            "looking into the reference", f"it has no question '{name}'", "make the reference again"
        )

    @property
    def finite(self) -> list[Question]:
        """Return the questions whose answer ends by itself."""
        return [question for question in self.questions if question.name != "endless"]


def read(path: Path) -> Reference:
    """Return a reference that was kept as JSON."""
    return Reference.model_validate_json(path.read_bytes())
