"""What is counted of answers, as a recipe says it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from weighbridge.core.field_types import Pattern


def _schema(value: Any) -> Any:
    """Read a schema that is given by its path: a recipe that is kept then holds it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ValueError(f"it cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ValueError(f"it is not JSON: {exc}") from exc


class AnswerArgs(BaseModel):
    """What is counted of answers, whatever the metrics are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["auto", "json", "any"] = Field(
        "auto",
        description="What answers must be: JSON where all references are objects or lists of it "
        "(`auto`), JSON, or anything.",
    )
    json_schema: Annotated[dict[str, Any] | None, BeforeValidator(_schema)] = Field(
        None,
        description="JSON schema that answers must keep, or the path of its file. What it refers "
        "to lies in it: nothing is fetched.",
    )
    refusals: tuple[Pattern, ...] | None = Field(
        None,
        description="Regular expressions that tell a refusal, whatever the case, in the first 200 "
        "characters of an answer. Open: English ones, where the rows are English; none: refusals "
        "are not counted.",
    )

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as exc:
            raise ValueError(f"it is no JSON schema: {exc.message}") from exc
        _refuse_what_lies_elsewhere(schema)
        _refuse_without_end(schema)
        return schema


def _refuse_what_lies_elsewhere(schema: dict[str, Any]) -> None:
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(root)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as exc:
            raise ValueError(f"it refers to {reference}, which does not lie in it") from exc


def _refuse_without_end(schema: dict[str, Any]) -> None:
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        validator_for(schema)(schema, registry=Registry()).is_valid({})
    except RecursionError as exc:
        raise ValueError("it refers to itself without end") from exc


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name in ("$ref", "$dynamicRef"):
            if isinstance(schema.get(name), str):
                yield schema[name]
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)
