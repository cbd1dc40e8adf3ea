"""Tasks of lm-evaluation-harness, run by its API client against a candidate's own endpoint."""

import json
import logging
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.environments import ensure, locate
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import run
from weighbridge.core.store import sha256_of
from weighbridge.core.workspace import Workspace
from weighbridge.serving.openai_client import Client
from weighbridge.tasks.harness.args import HarnessArgs
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.intervals import score_of

LOCK: Final = Path(__file__).with_suffix(".lock")
SCRIPT: Final = Path(__file__).with_name("lm_eval_script.py")
LABEL: Final = "lm_eval"
logger = logging.getLogger(__name__)


class Figures(BaseModel):
    """One metric of one task, as the script writes it."""

    model_config = ConfigDict(frozen=True)

    task: str
    metric: str
    filter: str
    value: float | None = Field(description="As the harness aggregates it.")
    higher_is_better: bool | None
    ids: list[int]
    values: list[float]

    def label(self) -> str:
        """Return `TASK.METRIC`, with the filter where it has one."""
        filtered = "" if self.filter == "none" else f".{self.filter}"
        return f"{self.task}.{self.metric}{filtered}"

    def score(self) -> Score:
        """Return the score, whose rows go by task and document."""
        value = sum(self.values) / len(self.values) if self.value is None else self.value
        return score_of(
            value,
            self.values,
            ids=[f"{self.task} {number}" for number in self.ids],
            greater_is_better=self.higher_is_better is not False,
            notes=[f"{len(self.ids):,} documents of lm-evaluation-harness"],
        )


def identity(args: HarnessArgs, workspace: Workspace) -> dict[str, Any]:
    """Return what the scores depend on beside the arguments: the harness, and the tasks' files."""
    environment, _ = locate(LOCK, workspace.settings.cache)
    folder = args.include_path
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    return {
        "environment": environment.path.name,
        "files": {str(path.relative_to(folder or path)): sha256_of(path) for path in files},
    }


def harness_scores(
    url: str, args: HarnessArgs, gen_kwargs: dict[str, Any], streams: int, workspace: Workspace
) -> dict[str, Score]:
    """Return the score of every metric of every task, by `TASK.METRIC`.

    Args:
        url: base address of the candidate's server.
        args: the recipe's.
        gen_kwargs: how answers are drawn, where a task does not say.
        streams: requests under way together.
        workspace: whose cache holds the environment.

    Raises:
        Unavailable: the harness cannot be built or fails; its last line says why.
    """
    doing = "running tasks of lm-evaluation-harness"
    python = ensure(LOCK, workspace.settings.cache).python
    with workspace.store.scratch() as scratch:
        arguments, result = scratch / "arguments.json", scratch / "result.json"
        arguments.write_text(json.dumps(_arguments(url, args, gen_kwargs, streams)))
        # -P: the script's own folder is no place to import from.
        command: list[str | Path] = [python, "-P", SCRIPT, arguments, result]
        logger.info("%s: %s", doing, ", ".join(args.tasks))
        finished = run("lm-eval", command, cwd=scratch, env={"TOKENIZERS_PARALLELISM": "false"})
        if finished.status != 0:
            lines = [line.strip() for line in finished.output.splitlines() if line.strip()]
            wrong = lines[-1][:400] if lines else f"it ended with status {finished.status}"
            raise Unavailable(doing, wrong, "check evaluate.lm_eval")
        figures = [Figures.model_validate(one) for one in json.loads(result.read_text())]
    return {one.label(): one.score() for one in figures if one.values}


def _arguments(
    url: str, args: HarnessArgs, gen_kwargs: dict[str, Any], streams: int
) -> dict[str, Any]:
    route = "chat/completions" if args.chat else "completions"
    return {
        **args.model_dump(mode="json"),
        "gen_kwargs": gen_kwargs,
        "model_args": {
            "model": Client(url).model,
            "base_url": f"{url}/v1/{route}",
            "num_concurrent": streams,
            "max_retries": 3,
            # Texts are sent: the engine cuts them into tokens itself.
            "tokenized_requests": False,
            "tokenizer_backend": "none",
        },
    }
