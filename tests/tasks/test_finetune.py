"""Fine-tuning: what it learns, what it leaves, and what it refuses."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.tasks.fine_tuning import STEPS, arguments, chat, run_folders, stored_model, stored_rows
from weighbridge.core import progress
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import Message, Row
from weighbridge.tasks.finetune import Finetuned, finetune
from weighbridge.tasks.finetune_args import FinetuneArgs


@dataclass(frozen=True)
class Made:
    """One run that several tests look at."""

    workspace: Workspace
    result: Finetuned
    told: list[int]


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    workspace = Workspace(Settings(home=tmp_path_factory.mktemp("home")))
    told: list[int] = []
    result = finetune(
        stored_model(tiny_model, workspace),
        stored_rows([chat(number) for number in range(100, 140)], workspace),
        arguments(logging_steps=4),
        workspace,
        lambda step, figures: told.append(step),
    )
    return Made(workspace, result, told)


def test_losses_hold_every_step_once_and_fall(made: Made) -> None:
    losses = made.result.losses
    assert [entry["step"] for entry in losses] == list(range(1, STEPS + 1))
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert all(entry["learning_rate"] >= 0 for entry in losses)


def test_the_live_curve_is_thinned_to_logging_steps_and_the_last(made: Made) -> None:
    assert made.told == [4, STEPS]


def test_the_adapter_is_two_clean_files(made: Made) -> None:
    adapter = made.result.adapter
    assert {path.name for path in adapter.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads((adapter.path / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == ("file:///models/tiny")


def test_the_merged_weights_tell_what_they_were_made_of(made: Made) -> None:
    origin = made.result.merged.origin
    assert origin["adapter"] == made.result.adapter.digest
    assert "model.safetensors" in [file.path for file in made.workspace.store.files(origin["base"])]


def test_the_merged_folder_is_the_base_with_other_weights(made: Made, tiny_model: Path) -> None:
    merged = made.result.merged.path
    assert {path.name for path in merged.iterdir()} == {path.name for path in tiny_model.iterdir()}
    differ = {
        p.name for p in merged.iterdir() if p.read_bytes() != (tiny_model / p.name).read_bytes()
    }
    # The tiny model's own does not name its end of text, at which llama.cpp stops.
    assert differ == {"model.safetensors", "generation_config.json"}
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_no_checkpoints_stay_behind(made: Made) -> None:
    assert not run_folders(made.workspace)


def test_merged_answers_equal_adapter_answers(made: Made, tiny_model: Path) -> None:
    from peft import PeftModel

    from weighbridge.tasks import generation, hf_models
    from weighbridge.tasks.answer_end import tokens_that_stop
    from weighbridge.tasks.encoding import encode, load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    prompts = [
        row.prompt for row in encode(tokenizer, [chat(number) for number in range(500, 532)])
    ]
    with hf_models.quiet():
        adapted = PeftModel.from_pretrained(
            hf_models.load_model(tiny_model), str(made.result.adapter.path)
        )
    with hf_models.threads(tiny_model):
        answers = [
            generation.answers(
                model,
                tokenizer,
                prompts,
                stops=tokens_that_stop(tiny_model, tokenizer),
                max_new_tokens=24,
                batch_size=16,
            )
            for model in (
                adapted,
                hf_models.load_model(made.result.merged.path),
                hf_models.load_model(tiny_model),
            )
        ]
    assert answers[0] == answers[1]
    assert answers[1] != answers[2]


def test_the_digests_do_not_depend_on_where_it_ran(
    made: Made, base: Artifact, data: Artifact, workspace: Workspace
) -> None:
    again = finetune(base, data, arguments(logging_steps=4), workspace)
    assert (again.adapter.digest, again.merged.digest) == (
        made.result.adapter.digest,
        made.result.merged.digest,
    )


def test_progress_is_told_step_by_step(
    base: Artifact, data: Artifact, workspace: Workspace
) -> None:
    seen: list[progress.Step] = []
    with progress.listen(seen.append):
        finetune(
            base,
            data,
            arguments(max_steps=-1, num_train_epochs=0.5, gradient_accumulation_steps=2),
            workspace,
        )
    # 40 rows, batches of 4, two of them a step: 5 steps an epoch, and half an epoch is rounded up.
    assert [(step.done, step.total) for step in seen if step.what == "fine-tuning"][-1] == (3, 3)


def test_merged_weights_keep_the_number_type_of_the_base(
    tiny_model: Path, data: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from tests.models import make

    make(tmp_path, dtype="bfloat16")
    merged = finetune(
        stored_model(tmp_path, workspace), data, arguments(max_steps=1), workspace
    ).merged
    assert {tensor.dtype for tensor in load_file(merged.path / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_packed_rows_do_not_see_each_other(base: Artifact, workspace: Workspace) -> None:
    """The first loss, before any weight has changed, is that of the same rows unpacked."""
    few = stored_rows([chat(number) for number in range(100, 108)], workspace)
    first = [
        finetune(base, few, arguments(max_steps=1, **options), workspace).losses[0]["loss"]
        for options in ({"per_device_train_batch_size": 8}, {"packing": True, "max_length": 512})
    ]
    assert first[1] == pytest.approx(first[0], rel=1e-3)


def test_plain_text_rows_need_no_chat_template(
    base: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.path, folder)
    (folder / "chat_template.jinja").unlink()
    rows = stored_rows(
        [Row(prompt="Order 101 is late. Team: ", completion="shipping")] * 4, workspace
    )
    assert finetune(stored_model(folder, workspace), rows, arguments(max_steps=1), workspace).losses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 16}, "row 1 of train has"),
        ({"max_length": 8, "drop_long": True}, "every row has more than 8 tokens"),
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
        ({"target_modules": ["lm_head"]}, "a tied layer is part of the adapter"),
        ({"learning_rate": 1e30}, "is nan|is inf"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    options: dict[str, object], words: str, base: Artifact, data: Artifact, workspace: Workspace
) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        finetune(base, data, arguments(**options), workspace)
    assert "\n" not in str(caught.value)
    assert not run_folders(workspace)


def test_long_rows_are_dropped_on_request(base: Artifact, workspace: Workspace) -> None:
    long = Row(
        prompt=[Message(role="user", content="late " * 100)], completion=chat(100).completion
    )
    data = stored_rows([long, *map(chat, range(100, 104))], workspace)
    result = finetune(base, data, arguments(max_steps=1, max_length=64, drop_long=True), workspace)
    assert (result.facts["rows"], result.facts["dropped_rows"]) == ("4", "1")


def test_a_row_longer_than_the_models_context_is_refused(
    base: Artifact, workspace: Workspace
) -> None:
    long = Row(
        prompt=[Message(role="user", content="late " * 600)], completion=chat(100).completion
    )
    with pytest.raises(BadInput, match="the model's context is 512"):
        finetune(base, stored_rows([long], workspace), arguments(max_length=2048), workspace)


def test_chats_without_a_chat_template_are_refused(
    base: Artifact, data: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.path, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="no chat template"):
        finetune(stored_model(folder, workspace), data, arguments(), workspace)


def test_no_training_rows_are_refused(base: Artifact, workspace: Workspace) -> None:
    with pytest.raises(BadInput, match="no training rows"):
        finetune(base, stored_rows([], workspace), arguments(), workspace)


def test_a_base_with_pickles_alone_is_refused(
    base: Artifact, data: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.path, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="loading the model"):
        finetune(stored_model(folder, workspace), data, arguments(), workspace)


def test_damaged_weights_are_refused(
    base: Artifact, data: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.path, folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(BadInput, match="damaged"):
        finetune(stored_model(folder, workspace), data, arguments(), workspace)


def test_too_little_disk_is_said_before_work_starts(
    base: Artifact, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.core.disk.free_bytes", lambda folder: 10)
    with pytest.raises(
        Unavailable, match=r"the merged model takes up to .* of disk, 10 B are free"
    ):
        finetune(base, data, arguments(), workspace)


@pytest.mark.parametrize(
    "wrong", [{"max_steps": 0}, {"learning_rate": 0}, {"lora_rank": 8}, {"max_length": 2}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FinetuneArgs.model_validate(wrong)
