"""Questions that the stand-in engine answers out of its weights: for tests of what is weighed."""

import json
from pathlib import Path
from typing import Any

from tests.stand_ins.engine import StandInArgs
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Variant
from weighbridge.tasks.weigh_args import WeighArgs

METRICS = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]})
QUESTIONS = {f"what is {n} doubled": f"it is {2 * n}" for n in range(40)}


def stored_questions(folder: Path, workspace: Workspace) -> Artifact:
    folder.mkdir()
    rows = [
        json.dumps(
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
        for question, answer in QUESTIONS.items()
    ]
    for split, part in {"train": rows[:20], "validation": rows[20:30], "test": rows[30:]}.items():
        (folder / f"{split}.jsonl").write_text("\n".join(part) + "\n")
    return workspace.store.add(folder, "jsonl")


def stored_variant(folder: Path, workspace: Workspace, known: int = len(QUESTIONS)) -> Variant:
    """A variant that knows the answers to so many of the questions."""
    folder.mkdir()
    (folder / "model.gguf").write_text(json.dumps(dict(list(QUESTIONS.items())[:known])))
    artifact = workspace.store.add(folder, "gguf")
    return Variant(label=folder.name, optimizer="made", artifact=artifact)


def args(*engines: StandInArgs, **options: Any) -> WeighArgs:
    quick = {"concurrency": [1, 2], "requests": 8, "seconds": 0.0, "tune": False, **options}
    return WeighArgs.model_validate({"engines": list(engines) or [StandInArgs(threads=2)], **quick})
