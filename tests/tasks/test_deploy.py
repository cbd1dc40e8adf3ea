"""deploy: a release at its target, by the target's name."""

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from core.errors import Unavailable
from core.processes import free_port, is_taken
from core.workspace import Workspace
from serving.client import is_ready
from serving.targets.base import Release
from tasks.deploy import DeployArgs, deploy, down, status
from tests.serving import bentos


@pytest.fixture
def args(workspace: Workspace) -> Iterator[DeployArgs]:
    target = {"kind": "local", "port": free_port(), "start_timeout": 120}
    yield DeployArgs.model_validate({"name": "shop", "target": target})
    down(workspace)


def test_serves_says_so_and_goes_down(args: DeployArgs, workspace: Workspace) -> None:
    serving = deploy(bentos.release(workspace), args, workspace)
    assert is_ready(serving.address)
    assert status(workspace)["shop"].healthy
    assert down(workspace) == ["shop"]
    assert not is_taken(int(serving.address.rsplit(":", 1)[1]))
    assert status(workspace)["shop"].release is None


def test_a_bento_that_is_nowhere_is_told(args: DeployArgs, workspace: Workspace) -> None:
    release = Release(name="demo", version="1", bento="demo:gone", digest="sha256:" + "0" * 64)
    with pytest.raises(Unavailable, match="is not on this machine"):
        deploy(release, args, workspace)


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="port"):
        DeployArgs.model_validate({"target": {"kind": "local", "port": 0}})
    with pytest.raises(ValidationError, match="did you mean 'local'"):
        DeployArgs.model_validate({"target": {"kind": "lokal"}})
