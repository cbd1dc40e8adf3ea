"""lm-evaluation-harness: its own client asks a candidate's endpoint, its figures become scores."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.conftest import MACHINE_CACHE
from tests.stand_ins import openai
from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.harness.args import HarnessArgs
from weighbridge.tasks.harness.lm_eval import Figures, harness_scores, identity
from weighbridge.tasks.statistics.paired import better

TASK = """task: doubled
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def args(tmp_path: Path) -> HarnessArgs:
    rows = tmp_path / "doubled.jsonl"
    questions = [{"question": f"what is {n} doubled", "answer": f"it is {2 * n}"} for n in range(6)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "doubled.yaml").write_text(TASK.format(rows=rows))
    return HarnessArgs(tasks=["doubled"], include_path=tmp_path)


def figures(*values: float, value: float | None = None) -> Figures:
    return Figures(
        task="doubled",
        metric="exact_match",
        filter="none",
        value=value,
        higher_is_better=True,
        ids=list(range(len(values))),
        values=list(values),
    )


# Starting it takes ten seconds, most of them its own imports.
@pytest.mark.slow
def test_a_task_of_ones_own_is_asked_over_http_and_its_documents_are_scored(
    args: HarnessArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    workspace = Workspace(Settings(home=tmp_path / "home", cache=MACHINE_CACHE))
    known = {f"what is {n} doubled": f"it is {2 * n}" for n in range(4)}
    with openai.serve(openai.Behaviour(answers=known)) as server:
        scores = harness_scores(server.url, args, {"temperature": 0.0}, 2, workspace)
        assert server.seen[0]["messages"][0]["content"].startswith("what is ")
        assert server.seen[0]["max_tokens"] == 16
    assert set(scores) == {"doubled.exact_match"}
    assert scores["doubled.exact_match"].per_example == [1, 1, 1, 1, 0, 0]
    assert scores["doubled.exact_match"].ids[:2] == ["doubled 0", "doubled 1"]


def test_documents_are_paired_by_their_numbers() -> None:
    worse, good = figures(*[0.0] * 30, *[1.0] * 30).score(), figures(*[1.0] * 60).score()
    assert worse.value == 0.5
    assert worse.low < 0.5 < worse.high
    assert better(worse, good).verdict == "shown"
    shifted = good.model_copy(update={"ids": [f"other {n}" for n in range(60)]})
    assert "0 rows in common" in better(worse, shifted).why


def test_the_harness_s_own_figure_stands_where_it_is_another() -> None:
    assert figures(0, 1, value=0.75).score().value == 0.75
    assert figures(0, 1).model_copy(update={"filter": "strict"}).label() == (
        "doubled.exact_match.strict"
    )


def test_another_task_in_the_folder_is_another_measurement(
    args: HarnessArgs, workspace: Workspace
) -> None:
    before = identity(args, workspace)
    assert identity(args, workspace) == before
    assert args.include_path
    (args.include_path / "doubled.yaml").write_text("task: doubled\n")
    assert identity(args, workspace) != before


def test_what_it_says_last_is_the_reason(
    args: HarnessArgs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "fails.py"
    script.write_text("print('loading'); raise KeyError('no such task')")
    module = "weighbridge.tasks.harness.lm_eval"
    monkeypatch.setattr(f"{module}.SCRIPT", script)
    monkeypatch.setattr(f"{module}.ensure", lambda lock, cache: _ThisPython)
    with openai.serve() as server, pytest.raises(Unavailable, match="KeyError: 'no such task'"):
        harness_scores(server.url, args, {}, 1, workspace)


class _ThisPython:
    import sys

    python = Path(sys.executable)


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="there is no such folder"):
        HarnessArgs(tasks=["a"], include_path=Path("/nowhere"))
