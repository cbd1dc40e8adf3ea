"""Variables in recipes: those that are meant for them are filled in, no other one is shown."""

from pathlib import Path

import pytest

from tests.configs.recipes import VALID
from weighbridge.configs.load import load, parse
from weighbridge.core.errors import BadInput


def test_variables_meant_for_recipes_are_filled_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def filled_in(text: str) -> object:
        return parse(VALID.replace("file:///models/base", text)).model_dump()["download"]["model"]

    monkeypatch.setenv("WEIGHBRIDGE_DEMO", "/not/there")
    assert filled_in("file://${WEIGHBRIDGE_DEMO}/x")["path"] == "/not/there/x"  # type: ignore[index]
    monkeypatch.setenv("CASES", str(tmp_path))
    assert filled_in("file://${CASES}/x")["path"] == f"{tmp_path}/x"  # type: ignore[index]
    monkeypatch.setenv("WEIGHBRIDGE_RECIPE_VARIABLES", "OTHER,BUCKET")
    monkeypatch.setenv("BUCKET", "models")
    assert filled_in("s3://${BUCKET}/x")["bucket"] == "models"  # type: ignore[index]
    assert filled_in("s3://${NOT_SET:-fallback}/x")["bucket"] == "fallback"  # type: ignore[index]


def test_a_variable_within_the_default_of_another_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_DEMO", "/there")
    nested = "'file://${WEIGHBRIDGE_NONE:-${WEIGHBRIDGE_DEMO}}/x'"
    with pytest.raises(BadInput, match=r"the default of .*WEIGHBRIDGE_NONE.* names a variable"):
        parse(VALID.replace("file:///models/base", nested))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://user:hidden@host/db"),
        ("WEIGHBRIDGE_DATABASE_URL", "postgresql://user:hidden@host/db"),
        ("WEIGHBRIDGE_TRACKING_URI", "http://user:hidden@host"),
        ("WEIGHBRIDGE_SOURCE", "http://user:hidden@host"),
        ("PGPASS", "hidden"),
        ("PGPASS", "/hidden"),
        ("WEIGHBRIDGE_API_KEY", "hidden"),
    ],
)
def test_other_variables_are_refused_without_their_values(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=name) as caught:
        parse(VALID.replace("file:///models/base", f"file:///${{{name}}}/base"))
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("PLACE", "name it WEIGHBRIDGE_PLACE, or export WEIGHBRIDGE_RECIPE_VARIABLES=PLACE"),
        # What it would be called otherwise is a setting.
        ("CACHE", "in clear; export WEIGHBRIDGE_RECIPE_VARIABLES=CACHE"),
    ],
)
def test_a_refused_variable_is_told_a_name_that_would_do(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "somewhere")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: a-${{{name}}}\n")
    with pytest.raises(BadInput, match=told):
        load(recipe)


def test_a_variable_between_braces_is_told_to_be_quoted(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("deploy: {target: {kind: local, gateway: {tls: ${WEIGHBRIDGE_TLS}}}}\n")
    with pytest.raises(BadInput, match=r'in quotes: "\$\{NAME\}"'):
        load(recipe)
