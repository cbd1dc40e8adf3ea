"""Reading a recipe: environment names filled in, every complaint with its line and field."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from weighbridge.configs.recipe import Recipe
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import quoted
from weighbridge.core.plugins import PluginArgs, names, suggestion
from weighbridge.core.plugins import load as load_plugin

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_SECRET = re.compile(
    r"(?:^|_)(?:key|token|secret|password|passwd|credentials?)(?:_|$)", re.IGNORECASE
)
Location = tuple[int | str, ...]


def load(path: Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises:
        BadInput: the file is missing, is not YAML, or does not describe a recipe; the message names
            every mistake with its line.
    """
    try:
        text = path.read_text()
    except FileNotFoundError as exc:
        raise BadInput(
            f"reading recipe {path}", "there is no such file", "run: weighbridge init"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"reading recipe {path}", str(exc)) from exc
    return parse(text, str(path))


def parse(text: str, source: str = "recipe") -> Recipe:
    """Return the recipe in a YAML text; `source` names it in messages. Raises BadInput."""
    try:
        # Read twice: nodes know their lines, plain values are what pydantic validates.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise BadInput(f"reading recipe {source}", " ".join(str(exc).split())) from exc
    if node is None or not isinstance(plain, dict):
        raise BadInput(
            f"reading recipe {source}", "it holds no mapping of stages", "run: weighbridge init"
        )
    # PyYAML takes the last of two equal keys without a word.
    _refuse_doubled_keys(node, source)
    try:
        # Filled in after parsing: what a variable holds cannot change the structure of the recipe.
        return Recipe.model_validate(_filled_in(plain, source))
    except ValidationError as exc:
        complaints = [_complaint(error, node, plain) for error in exc.errors()]
        raise BadInput(f"reading recipe {source}", "; ".join(complaints)) from exc


def _filled_in(value: Any, source: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_in(item, source) for item in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: _lookup(match["name"], match["default"], source), value)


def _lookup(name: str, default: str | None, source: str) -> str:
    if _SECRET.search(name):
        raise BadInput(
            f"reading recipe {source}",
            f"${{{name}}} looks like a secret, and recipes are stored in clear",
            "leave credentials to the tool's own chain (AWS_*, HF_TOKEN, …)",
        )
    value = os.environ.get(name, default)
    if value is None:
        raise BadInput(
            f"reading recipe {source}",
            f"environment variable {name} is not set",
            f"export {name}=…",
        )
    return value


def _refuse_doubled_keys(node: yaml.Node, source: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_doubled_keys(child, source)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise BadInput(
                    f"reading recipe {source}", f"line {line}: '{key.value}' is there twice"
                )
            seen.add(key.value)
            _refuse_doubled_keys(value, source)


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
    shown = f" (given: {quoted(value)})" if isinstance(value, str | int | float | bool) else ""
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
        for key, value in node.value:
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
