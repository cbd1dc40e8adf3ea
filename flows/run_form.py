"""The form for a run in Prefect's UI, made from the recipe's JSON schema.

Fields stand in the order of the models they come from; choices have the names of a recipe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class RunForm:
    """Annotation of a flow's parameter that makes its JSON schema a good form."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        document = handler(schema)
        for model in _models(document, handler, set()):
            # PostgreSQL gives the keys of what it stores back by length, Prefect's UI shows them by
            # position.
            for position, field in enumerate(model["properties"].values()):
                field["position"] = position
            # A plugin's arguments are a choice, called as `kind` calls it; others are a stage of
            # the recipe.
            kind = model["properties"].get("kind", {}).get("const")
            model["title"] = kind or str(model.get("title", "")).removesuffix("Args")
        return document


def _models(node: Any, handler: GetJsonSchemaHandler, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Return every object with properties, however deep, once."""
    if isinstance(node, list):
        for item in node:
            yield from _models(item, handler, seen)
    if not isinstance(node, dict):
        return
    reference = node.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen.add(reference)
        yield from _models(handler.resolve_ref_schema({"$ref": reference}), handler, seen)
    if isinstance(node.get("properties"), dict):
        yield node
    for item in list(node.values()):
        yield from _models(item, handler, seen)
