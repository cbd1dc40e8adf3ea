"""Fine-tuning in processes: a killed run ends as if nothing happened, and ranks train together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tasks.fine_tuning import STEPS, arguments, run_folders
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.finetune import Finetuned, finetune
from weighbridge.tasks.finetune_args import FinetuneArgs

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


def start(
    base: Artifact, data: Artifact, args: FinetuneArgs, *launcher: str, **variables: str
) -> subprocess.Popen[str]:
    script = base.path.parents[2] / "script.py"
    script.write_text(SCRIPT)
    words = [base.model_dump_json(), data.model_dump_json(), args.model_dump_json()]
    command = [sys.executable, *launcher, str(script), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    output = subprocess.STDOUT if variables else None
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=output, text=True, env=environment, cwd=ROOT
    )


def test_threads_that_wait_for_each_other_sleep(
    base: Artifact, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    process = start(base, data, arguments(max_steps=1), OMP_DISPLAY_ENV="verbose")
    assert process.stdout is not None
    # The library says it once it is loaded: what is trained afterwards says nothing more of it.
    said = next((line for line in process.stdout if "GOMP_SPINCOUNT" in line), "nothing")
    process.kill()
    process.communicate()
    assert "GOMP_SPINCOUNT = '0'" in said


def last_result(process: subprocess.Popen[str]) -> Finetuned:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return Finetuned.model_validate_json(
        next(line for line in out.splitlines() if line.startswith("{"))
    )


@pytest.mark.slow
def test_a_run_killed_in_between_ends_with_the_losses_of_an_uninterrupted_one(
    base: Artifact,
    data: Artifact,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    args = arguments(max_steps=16, save_steps=4, lora_dropout=0.1, gradient_accumulation_steps=2)
    process = start(base, data, args)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 10"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    (folder,) = run_folders(workspace)
    assert (folder / "checkpoint-8").is_dir()
    # As if the kill had come while a later checkpoint was written.
    shutil.copytree(folder / "checkpoint-8", folder / "checkpoint-12")
    (folder / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")

    resumed = last_result(start(base, data, args))
    assert resumed.facts["resumed_from"] == "checkpoint-8"
    assert not run_folders(workspace)

    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "other"))
    whole = last_result(start(base, data, args))
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
