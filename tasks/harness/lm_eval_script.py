"""Run tasks of lm-evaluation-harness against an endpoint; write each document's figures as JSON.

It runs in the environment of `lm_eval.lock`: `python -P lm_eval_script.py ARGUMENTS RESULT`, both
files of JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager


def main(arguments: Path, result: Path) -> None:
    """Evaluate what the arguments name."""
    asked = json.loads(arguments.read_text())
    found = lm_eval.simple_evaluate(
        model="local-chat-completions" if asked["chat"] else "local-completions",
        model_args=asked["model_args"],
        tasks=asked["tasks"],
        num_fewshot=asked["num_fewshot"],
        limit=asked["limit"],
        task_manager=_task_manager(asked["tasks"], asked["include_path"]),
        apply_chat_template=asked["chat"],
        gen_kwargs=asked["gen_kwargs"],
        log_samples=True,
        bootstrap_iters=0,
    )
    result.write_text(json.dumps([*_figures(found)]))


def _task_manager(tasks: list[str], include_path: str | None) -> TaskManager:
    if include_path:
        # Its own thousands of tasks take a minute to be listed.
        alone = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(alone.all_tasks):
            return alone
    return TaskManager(include_path=include_path)


def _figures(found: dict[str, Any]) -> Any:
    for task, samples in found["samples"].items():
        for filtered in dict.fromkeys(sample["filter"] for sample in samples):
            rows = [sample for sample in samples if sample["filter"] == filtered]
            for metric in rows[0]["metrics"]:
                values = [row[metric] for row in rows]
                # Some metrics have no figure of a single document.
                if all(isinstance(value, int | float) for value in values):
                    yield {
                        "task": task,
                        "metric": metric,
                        "filter": filtered,
                        "value": found["results"][task].get(f"{metric},{filtered}"),
                        "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
                        "ids": [row["doc_id"] for row in rows],
                        "values": [float(value) for value in values],
                    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
