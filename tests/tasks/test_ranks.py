"""A fine-tune in several processes: what each is told, and what identifies it."""

import json
from typing import Any

import pytest

from tests.tasks.fine_tuning import arguments
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import Finished
from weighbridge.core.stage_cache import canonical
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import finetune_rank, ranks
from weighbridge.tasks.finetune import finetune
from weighbridge.tasks.finetune_args import FinetuneArgs
from weighbridge.tasks.ranks import RankRequest, torchrun_command

BASE = Artifact(digest="sha256:" + "0" * 64, format="safetensors", size=1)
DATA = Artifact(digest="sha256:" + "1" * 64, format="jsonl", size=1)


def request_of(**changes: object) -> RankRequest:
    return RankRequest(base=BASE, data=DATA, args=arguments(**changes))


def test_results_of_before_there_were_ranks_are_still_found() -> None:
    assert not {"nodes", "processes_per_node"} & set(canonical(FinetuneArgs()))
    assert canonical(FinetuneArgs(nodes=2))["nodes"] == 2


def test_every_machine_runs_the_same_command() -> None:
    request = request_of(nodes=2, processes_per_node=4)
    command = torchrun_command(request, "10.0.0.1:29400")
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=10.0.0.1:29400"} < set(command)
    assert RankRequest.model_validate_json(command[-1]) == request
    # Others who train other things through the same machine must not meet these.
    other = request_of(nodes=2, processes_per_node=4, seed=1)
    assert f"--rdzv-id={request.run_id}" in command
    assert other.run_id != request.run_id


def test_several_machines_are_not_started_from_one(workspace: Workspace) -> None:
    with pytest.raises(BadInput, match="weighbridge torchrun"):
        finetune(BASE, DATA, arguments(nodes=2), workspace)


def test_steps_result_and_refusal_of_the_first_rank_come_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def say(*lines: str, status: int = 0) -> None:
        def run(name: str, argv: object, on_line: Any) -> Finished:
            for line in lines:
                on_line(line)
            return Finished(status, "\n".join(lines))

        monkeypatch.setattr(ranks, "run", run)

    told: list[int] = []

    def launch() -> Any:
        args = arguments(processes_per_node=2)
        return ranks.launch(BASE, DATA, args, lambda step, figures: told.append(step))

    made = {"adapter": BASE.model_dump(), "merged": BASE.model_dump(), "losses": [], "seconds": 1}
    say('step: {"step": 3, "figures": {}}', f"result: {json.dumps(made)}")
    assert launch().merged == BASE
    assert told == [3]
    say('failed: {"doing": "a", "wrong": "b", "remedy": "c", "exit_code": 2}', status=1)
    with pytest.raises(BadInput, match="a: b; c"):
        launch()
    say("Segmentation fault", status=1)
    with pytest.raises(Unavailable, match="Segmentation fault"):
        launch()


def test_a_rank_refuses_another_number_of_ranks_and_machines_without_a_common_store(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BadInput, match="3 ranks, the recipe says 2"):
        finetune_rank.train(request_of(nodes=2), workspace, record=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="share no store"):
        finetune_rank.train(request_of(nodes=2), workspace, record=True)
