"""Reading a recipe: environment names filled in, every complaint with its line and field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from weighbridge.configs import yaml_document
from weighbridge.configs.recipe import Recipe
from weighbridge.configs.variables import filled_in
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import not_utf8, quoted
from weighbridge.core.plugins import PluginArgs, names, suggestion
from weighbridge.core.plugins import load as load_plugin

MOST_COMPLAINTS = 10
LONGEST_SHOWN = 200
"""Characters of a value in a complaint."""
Location = tuple[int | str, ...]


def load(path: Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises:
        BadInput: the file is missing, is not YAML, or does not describe a recipe; the message names
            every mistake with its line.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            # One more than is taken: a device has no end.
            text = stream.read(yaml_document.LONGEST + 1)
    except FileNotFoundError as exc:
        raise BadInput(
            f"reading recipe {path}", "there is no such file", "run: weighbridge init"
        ) from exc
    except OSError as exc:
        raise BadInput(f"reading recipe {path}", (exc.strerror or str(exc)).lower()) from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"reading recipe {path}", not_utf8(exc)) from exc
    return parse(text, str(path))


def parse(text: str, source: str = "recipe") -> Recipe:
    """Return the recipe in a YAML text; `source` names it in messages. Raises BadInput."""
    node, plain = yaml_document.read(text, source)
    if node is None or not isinstance(plain, dict):
        raise BadInput(
            f"reading recipe {source}", "it holds no mapping of stages", "run: weighbridge init"
        )
    try:
        # Filled in after parsing: what a variable holds cannot change the structure of the recipe.
        return Recipe.model_validate(filled_in(plain, source))
    except ValidationError as exc:
        errors = exc.errors()
        complaints = [_complaint(error, node, plain) for error in errors[:MOST_COMPLAINTS]]
        if len(errors) > MOST_COMPLAINTS:
            complaints.append(f"and {len(errors) - MOST_COMPLAINTS} more")
        raise BadInput(f"reading recipe {source}", "; ".join(complaints)) from exc


def _complaint(error: ErrorDetails, node: yaml.Node, plain: Any) -> str:
    location = error["loc"]
    line = _line(node, location)
    text = (
        f"line {line}, {_dotted(location)}: " if location else ""
    )  # of no single place, but of several together
    if error["type"] == "extra_forbidden":
        return f"{text}unknown key; {suggestion(str(location[-1]), _siblings(plain, location))}"
    if error["type"] == "missing":
        return f"{text}missing"
    value = error["input"]
    shown = ""
    if isinstance(value, str | int | float | bool):
        text_of_value = quoted(value)
        rest = "…" if len(text_of_value) > LONGEST_SHOWN else ""
        shown = f" (given: {text_of_value[:LONGEST_SHOWN]}{rest})"
    # pydantic puts this before the text of a validator's own ValueError.
    return f"{text}{error['msg'].removeprefix('Value error, ')}{shown}"


def _dotted(location: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _line(node: yaml.Node, location: Location) -> int:
    """Return the line of the deepest part of `location` that the file holds, from 1."""
    line = node.start_mark.line
    for part in location:
        child = _child(node, part)
        # pydantic's locations also name members of a union, which no key of the file stands for.
        if child is None:
            continue
        line, node = child
    return line + 1


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line, item
    if isinstance(node, yaml.MappingNode):
        # The last one: what a merge key (`<<`) brings stands before what overrides it.
        for key, value in reversed(node.value):
            if key.value == part:
                return key.start_mark.line, value
    return None


def _siblings(plain: Any, location: Location) -> list[str]:
    """Return the names that are known where an unknown key stands."""
    model: Any = Recipe
    value = plain
    for part in location[:-1]:
        value = value[part]
        if isinstance(part, str):
            model = model.model_fields[part]
        if not isinstance(value, dict):
            continue
        plugin = _plugin_point(model)
        if plugin and value.get("kind") in names(plugin.point):
            model = load_plugin(plugin.point, value["kind"]).Args
        elif nested := _nested_model(model):
            model = nested
    return list(getattr(model, "model_fields", {}))


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation, what it is made of, and what it is annotated with."""
    yield annotation
    if isinstance(annotation, FieldInfo):
        yield from annotation.metadata
        yield from _parts(annotation.annotation)
    for part in get_args(annotation):
        yield from _parts(part)


def _plugin_point(annotation: Any) -> PluginArgs | None:
    return next((part for part in _parts(annotation) if isinstance(part, PluginArgs)), None)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    models = (
        part
        for part in _parts(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    )
    return next(models, None)
