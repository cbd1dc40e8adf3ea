"""`${NAME}` and `${NAME:-default}` in a recipe, filled in from the environment.

A recipe is stored in clear, so a variable is only filled in where somebody meant it for recipes:
its name begins with `WEIGHBRIDGE_` (and is no setting), `WEIGHBRIDGE_RECIPE_VARIABLES` lists it, or
it holds the path of a file or folder that is there.
"""

import os
import re
from pathlib import Path
from typing import Any

from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings, names

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_PREFIX = "WEIGHBRIDGE_"
# Also where the name is listed: nobody means a key to be stored in clear.
_SECRET = re.compile(
    r"(?:^|_)(?:key|token|secret|password|passwd|credentials?)(?:_|$)", re.IGNORECASE
)
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")


def filled_in(value: Any, source: str) -> Any:
    """Return a plain value with every variable in its texts replaced.

    Raises:
        BadInput: a variable is not set, or is not for recipes.
    """
    if isinstance(value, dict):
        return {key: filled_in(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, source) for item in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: _lookup(match["name"], match["default"], source), value)


def _lookup(name: str, default: str | None, source: str) -> str:
    doing = f"reading recipe {source}"
    if _SECRET.search(name):
        raise BadInput(
            doing,
            f"${{{name}}} looks like a secret, and recipes are stored in clear",
            "leave credentials to the tool's own chain (AWS_*, HF_TOKEN, …)",
        )
    if default and "${" in default:
        # Its own brace would end the outer variable, and the rest be taken as it stands.
        raise BadInput(doing, f"the default of ${{{name}}} names a variable itself", "name one")
    value = os.environ.get(name)
    if value is None and default is None:
        raise BadInput(doing, f"environment variable {name} is not set", f"export {name}=…")
    if value is None:
        return str(default)
    if not value.isprintable():
        raise BadInput(doing, f"${{{name}}} holds a line break, or a character of that kind")
    if not _is_meant_for_recipes(name) and not _is_path(value):
        raise BadInput(
            doing, f"${{{name}}} is not for recipes, which are stored in clear", _how_to_mean(name)
        )
    if _PASSWORD.search(value):
        raise BadInput(
            doing,
            f"${{{name}}} holds a URL with a password, and recipes are stored in clear",
            "leave credentials to the tool's own chain (AWS_*, HF_TOKEN, …)",
        )
    return value


def _is_meant_for_recipes(name: str) -> bool:
    if name in names(Settings().recipe_variables):
        return True
    return name.startswith(_PREFIX) and not _is_setting(name)


def _is_setting(name: str) -> bool:
    """Whether it is one of ours, which may hold a password: that of the database does."""
    return name.startswith(_PREFIX) and name.removeprefix(_PREFIX).lower() in Settings.model_fields


def _how_to_mean(name: str) -> str:
    """Return how to say that a variable is for recipes."""
    listed = f"export WEIGHBRIDGE_RECIPE_VARIABLES={name}"
    another = f"{_PREFIX}{name}"
    is_free = not name.startswith(_PREFIX) and not _is_setting(another)
    return f"name it {another}, or {listed}" if is_free else listed


def _is_path(value: str) -> bool:
    """Whether this is the path of something on this machine, which no secret is."""
    try:
        return value.startswith("/") and Path(value).exists()
    except OSError:  # longer than a name can be
        return False
