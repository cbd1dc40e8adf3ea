"""Fine-tuning in processes: a killed run ends as if nothing happened, and ranks train together."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tasks.fine_tuning import STEPS, arguments, run_folders
from tests.warm.training import WarmTraining
from weighbridge.core import processes
from weighbridge.core.artifact import Artifact
from weighbridge.core.processes import Finished
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.finetune import finetune
from weighbridge.tasks.finetune_args import FinetuneArgs, Finetuned

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from weighbridge.core.artifact import Artifact
from weighbridge.core.store import Store
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.finetune import FinetuneArgs, finetune

store = Store(Path(__file__).parent)
base, data = (store.bind(Artifact.model_validate_json(text)) for text in sys.argv[1:3])
told = []
def on_log(step, figures):
    told.append(step)
    print("step", step, flush=True)
result = finetune(base, data, FinetuneArgs.model_validate_json(sys.argv[3]), Workspace(), on_log)
print(result.model_dump_json(), flush=True)
"""


def script_words(base: Artifact, data: Artifact, args: FinetuneArgs) -> list[str]:
    """The script that fine-tunes, and its arguments."""
    script = base.path.parents[2] / "script.py"
    script.write_text(SCRIPT)
    return [str(script), *(given.model_dump_json() for given in (base, data, args))]


@pytest.fixture(scope="module", autouse=True)
def _warm_training(test_run: tuple[Path, int]) -> Iterator[None]:
    """What `fine_tune` runs, and torchrun, begin with the libraries of the trainer imported."""
    with WarmTraining(*test_run):
        yield


def fine_tune(*words: str, on_line: Callable[[str], None] = lambda line: None) -> Finished:
    """Run the script; end it where taking a line of its output raises something."""
    command = [sys.executable, "-P", *words]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return processes.run("a fine-tune", command, env=variables, cwd=ROOT, on_line=on_line)


def test_threads_that_wait_for_each_other_sleep(
    base: Artifact, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "verbose"}
    process = subprocess.Popen(
        [sys.executable, *script_words(base, data, arguments(max_steps=1))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
        cwd=ROOT,
    )
    assert process.stdout is not None
    # The library says it once it is loaded: what is trained afterwards says nothing more of it.
    said = next((line for line in process.stdout if "GOMP_SPINCOUNT" in line), "nothing")
    process.kill()
    process.communicate()
    assert "GOMP_SPINCOUNT = '0'" in said


def last_result(done: Finished) -> Finetuned:
    assert done.status == 0, done.tail(20)
    return Finetuned.model_validate_json(
        next(line for line in done.output.splitlines() if line.startswith("{"))
    )


class Killed(Exception):
    """What the test's process ends its fine-tune with."""


def kill_at_step_10(line: str) -> None:
    if line.startswith("step 10"):
        raise Killed


@pytest.mark.slow
def test_a_run_killed_in_between_ends_with_the_losses_of_an_uninterrupted_one(
    base: Artifact,
    data: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    args = arguments(max_steps=16, save_steps=4, lora_dropout=0.1, gradient_accumulation_steps=2)
    words = script_words(base, data, args)
    with pytest.raises(Killed):
        fine_tune(*words, on_line=kill_at_step_10)
    (folder,) = run_folders(workspace)
    assert (folder / "checkpoint-8").is_dir()
    # As if the kill had come while a later checkpoint was written.
    shutil.copytree(folder / "checkpoint-8", folder / "checkpoint-12")
    (folder / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")

    resumed = last_result(fine_tune(*words))
    assert resumed.facts["resumed_from"] == "checkpoint-8"
    assert not run_folders(workspace)

    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "other"))
    whole = last_result(fine_tune(*words))
    assert whole.facts["resumed_from"] == ""
    assert resumed.losses == whole.losses
    assert resumed.merged.digest == whole.merged.digest


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_trains_no_step_again(
    base: Artifact, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.tasks import merging

    def killed(*unused: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_merged", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(base, data, arguments(), workspace)
    started = time.monotonic()
    result = finetune(base, data, arguments(), workspace)
    assert result.facts["resumed_from"] == f"checkpoint-{STEPS}"
    assert len(result.losses) == STEPS
    assert result.seconds <= time.monotonic() - started


@pytest.mark.slow
def test_two_processes_of_one_machine_learn_what_one_does_from_batches_of_both(
    base: Artifact, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    told: list[int] = []
    two = finetune(
        base,
        data,
        arguments(processes_per_node=2),
        workspace,
        lambda step, figures: told.append(step),
    )
    assert told == list(range(1, STEPS + 1))
    assert two.facts["ranks"] == "2"
    assert workspace.store.is_whole(two.merged)
    assert not run_folders(workspace)
    one = finetune(base, data, arguments(per_device_train_batch_size=8), workspace)
    assert [step["loss"] for step in two.losses] == pytest.approx(
        [step["loss"] for step in one.losses], rel=1e-4
    )
