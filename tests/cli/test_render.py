"""render: a target's manifests as files."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.flows.chain import recipe, write
from tests.rollout.rollouts import RegisteredVersion
from tests.serving.targets.kubernetes.releases import GATEWAY
from weighbridge.cli.main import cli
from weighbridge.core.errors import BadInput
from weighbridge.registry import Binding, Registry

KUBERNETES: dict[str, Any] = {
    "kind": "kubernetes",
    "image": "registry.example/demo:{version}",
    "namespace": "models",
}


class Models:
    """MLflow with one target, of which version 7 was built and version 8 was not."""

    def __init__(self, target: dict[str, Any]) -> None:
        steps = {"rollout": {"steps": [25, 100]}} if "gateway" in target else {}
        self._deploy = {"target": target, **steps}

    def binding(self, target: str) -> Binding | None:
        known = Binding(target="shop", model="demo", deploy=self._deploy)
        return known if target == known.target else None

    def version(self, name: str, which: str) -> RegisteredVersion:
        number = "7" if which == "champion" else which
        tags = {"bento": "demo:q8", "bento_digest": "sha256:77"} if number == "7" else {}
        return RegisteredVersion(name, number, tags)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))

    def render(*words: str, target: dict[str, Any] = KUBERNETES) -> Result:
        monkeypatch.setattr(Registry, "connect", lambda settings: Models(target))
        command = ["render", *words, "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(cli, command)
        if isinstance(result.exception, BadInput):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return render


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: yaml.safe_load(path.read_text()) for path in folder.glob("k*.yaml")}


def test_the_champions_manifests_are_written_and_the_role_is_told(
    rendered: Any, tmp_path: Path
) -> None:
    output = rendered("shop").output
    listed = read(tmp_path / "out")["kustomization.yaml"]["resources"]
    deployment = yaml.safe_load((tmp_path / "out" / "deployment-shop.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/demo:7"
    assert "deployer-role.yaml" not in listed
    # What is printed can be applied as it stands.
    role = list(yaml.safe_load_all(output[output.index("# deployer-role.yaml") :]))
    assert [one["kind"] for one in role] == ["ServiceAccount", "Role", "RoleBinding"]
    assert "note: one replica: a drained node waits" in output


def test_the_recipes_own_steps_go_to_argo_rollouts(rendered: Any, tmp_path: Path) -> None:
    rendered("shop", "--as", "argo-rollouts", target={**KUBERNETES, "gateway": GATEWAY})
    rollout = yaml.safe_load((tmp_path / "out" / "rollout-shop.yaml").read_text())
    assert rollout["spec"]["strategy"]["canary"]["steps"][0] == {"setWeight": 25}


def test_others_get_their_files(rendered: Any, tmp_path: Path) -> None:
    rendered("shop", "--as", "kserve")
    assert (tmp_path / "out" / "llminferenceservice-shop.yaml").exists()
    assert "sky serve up" in rendered("shop", "--as", "skypilot").output
    assert (tmp_path / "out" / "skypilot.yaml").exists()


@pytest.mark.parametrize(
    ("words", "target", "says"),
    [
        (["elsewhere"], KUBERNETES, "there is no target of this name; give a recipe's file"),
        (["shop"], {"kind": "local"}, "a target of the kind `local`; set deploy.target.kind"),
        (["shop", "--version", "8"], KUBERNETES, "no Bento was built of this version"),
        (
            ["shop"],
            {
                **KUBERNETES,
                "overlay": [
                    {
                        "kind": "Deployment",
                        "spec": {"template": {"spec": {"automountServiceAccountToken": True}}},
                    }
                ],
            },
            "Deployment shop: its pods carry a token",
        ),
    ],
)
def test_what_cannot_be_rendered_is_said_and_nothing_is_written(
    words: list[str], target: dict[str, Any], says: str, rendered: Any, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        rendered(*words, target=target)
    assert not (tmp_path / "out").exists()


def test_the_role_is_there_before_the_first_version_and_without_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "connect", None)
    document = recipe("file:///base", "file:///data", deploy__target=KUBERNETES)
    path = write(tmp_path / "recipe.yaml", document)
    result = CliRunner().invoke(cli, ["render", str(path), "--role"])
    assert result.exit_code == 0, result.output
    account, role, _ = yaml.safe_load_all(result.output)
    assert (account["kind"], role["kind"]) == ("ServiceAccount", "Role")
    assert {one["metadata"]["namespace"] for one in (account, role)} == {"models"}
    nowhere = CliRunner().invoke(cli, ["render", str(path)])
    assert (nowhere.exit_code, "-o DIR" in nowhere.output) == (2, True)
