"""What trains a recipe's fine-tune on several machines, printed."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.flows.chain import recipe, write_data
from weighbridge.cli.main import cli
from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.ranks import RankRequest


@pytest.fixture
def path(workspace: Workspace, tiny_model: Path, tmp_path: Path) -> Path:
    """A recipe for one machine with two processes."""
    document = recipe(
        f"file://{tiny_model}",
        f"file://{write_data(tmp_path / 'data')}",
        finetune__processes_per_node=2,
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "recipe.yaml"


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["torchrun", *map(str, arguments)])


def test_what_is_printed_names_base_and_data_as_they_are_in_the_store(
    path: Path, workspace: Workspace
) -> None:
    words = shlex.split(invoke(path, "--rendezvous", "first").output)
    assert "--rdzv-endpoint=first:29400" in words
    request = workspace.store.bind(RankRequest.model_validate_json(words[-1]))
    assert (request.base.path / "config.json").exists()
    assert (request.data.path / "train.jsonl").exists()
    manifest = invoke(path, "--manifest", "jobset", "--image", "mine", "--memory", "8GiB").output
    [job] = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": str(8 << 30), "nvidia.com/gpu": "2"}


def test_what_cannot_be_is_refused(path: Path) -> None:
    refused = invoke(path, "--manifest", "trainjob").exception
    assert isinstance(refused, BadInput)
    assert "--image" in str(refused)
    document = yaml.safe_load(path.read_text())
    document["finetune"]["nodes"] = 2
    path.write_text(yaml.safe_dump(document))
    refused = invoke(path).exception
    assert isinstance(refused, BadInput)
    assert "share no store" in str(refused)
