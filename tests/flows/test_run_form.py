"""The run form: in the recipe's order, with the recipe's words."""

from collections.abc import Iterator
from typing import Any

import pytest

from weighbridge.configs.recipe import Recipe
from weighbridge.core import plugins


def objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield node
        for item in node.values():
            yield from objects(item)
    if isinstance(node, list):
        for item in node:
            yield from objects(item)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """As `prefect deploy` makes it."""
    from prefect.utilities.callables import parameter_schema

    from weighbridge.flows.release import release

    schema: dict[str, Any] = parameter_schema(release).model_dump()
    return schema


def test_every_field_has_its_place_however_the_database_sorts_its_keys(
    schema: dict[str, Any],
) -> None:
    models = list(objects(schema["definitions"]))
    assert len(models) > 10
    for model in models:
        assert [field["position"] for field in model["properties"].values()] == list(
            range(len(model["properties"]))
        )


def test_stages_are_in_the_order_of_the_recipe(schema: dict[str, Any]) -> None:
    fields = schema["definitions"]["Recipe"]["properties"]
    assert sorted(fields, key=lambda name: fields[name]["position"]) == list(Recipe.model_fields)


@pytest.mark.parametrize("point", ["engine", "optimizer", "source", "metric", "target"])
def test_a_choice_is_called_as_in_a_recipe(schema: dict[str, Any], point: plugins.Point) -> None:
    titles = {model.get("title") for model in objects(schema["definitions"])}
    assert set(plugins.names(point)) <= titles


def test_no_union_is_one_that_the_form_shows_as_raw_json(schema: dict[str, Any]) -> None:
    assert "oneOf" not in str(schema)
    assert "discriminator" not in str(schema)


def test_the_schema_of_recipe_files_has_nothing_of_the_form() -> None:
    assert "position" not in Recipe.model_json_schema()["properties"]["name"]
