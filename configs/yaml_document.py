"""A YAML text as nodes, which know their lines, and as plain values.

Anybody's text is read in time and memory that follow from its length.
"""

import re
from typing import Any

import yaml

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line

LONGEST = 100_000
"""Characters. PyYAML reads that many in about a second; our longest recipe has two thousand."""
DEEPEST = 40
"""Mappings and lists inside each other. PyYAML, pydantic and we walk them by recursion."""
MOST_VALUES = 20_000
"""Values once every alias stands for what it names: ten aliases of ten, seven times over, are ten
million.
"""
MOST_DIGITS = 100
"""Of a whole number. Python writes none of more than 4,300 digits, and reads longer ones in hex."""
_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_OTHER_BASE = re.compile(r"[-+]?(?:0[0-7_]+|[^:]*:.*)")
"""Numbers that nobody means: 010, which is 8 to YAML 1.1, and 1:30, which is 90."""


def read(text: str, source: str) -> tuple[yaml.Node | None, Any]:
    """Return the text's nodes and its plain values; `source` names it in messages.

    Raises:
        BadInput: it is not YAML, too long, too deep, refers to itself, has a key twice, or a number
            that nobody means.
    """
    doing = f"reading recipe {source}"
    if len(text) > LONGEST:
        raise BadInput(doing, f"it is longer than {LONGEST:,} characters")
    try:
        _refuse_excess(text, doing)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                # Before values are made of the nodes: merge keys (`<<`) are filled in then, beside
                # what overrides them.
                _refuse_ambiguous(node, doing)
            plain = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    # ValueError: a date such as 2024-13-01, or a number of five thousand digits.
    except (yaml.YAMLError, ValueError) as exc:
        # The brace of a variable ends a plain value there.
        is_variable = "flow mapping" in str(exc) and "${" in text
        remedy = 'between braces, write a value with a variable in quotes: "${NAME}"'
        wrong = one_line(exc)
        raise BadInput(doing, wrong, remedy if is_variable else "") from exc
    # What PyYAML stumbles over where a value is told to be of another type: `!!int ""`, `!!bool x`.
    except (LookupError, AttributeError) as exc:
        raise BadInput(doing, "a value is not what its tag (`!!…`) says") from exc
    return node, plain


def _refuse_excess(text: str, doing: str) -> None:
    """Raise BadInput where the text is too deep, refers to itself, or grows past all bounds."""
    open_anchors: list[str | None] = []
    sizes: dict[str | None, int] = {}
    # Of the values that are open, from the whole document to the innermost.
    counts = [0]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise BadInput(doing, f"line {line}: *{event.anchor} stands inside of itself")
            counts[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if any("\ud800" <= character <= "\udfff" for character in event.value):
                raise BadInput(doing, f"line {line}: half of a surrogate pair is no character")
            sizes[event.anchor] = 1
            counts[-1] += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
            counts.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            size = counts.pop()
            sizes[open_anchors.pop()] = size
            counts[-1] += size
        if len(open_anchors) > DEEPEST:
            raise BadInput(doing, f"line {line}: more than {DEEPEST} levels inside each other")
        if counts[-1] > MOST_VALUES:
            raise BadInput(doing, f"line {line}: more than {MOST_VALUES:,} values")


def _refuse_ambiguous(node: yaml.Node, doing: str) -> None:
    """Raise BadInput for a key that stands there twice, and for a number of very many digits.

    PyYAML takes the last of two equal keys without a word.
    """
    line = node.start_mark.line + 1
    if node.tag == _INTEGER and len(node.value) > MOST_DIGITS:
        raise BadInput(doing, f"line {line}: a number of {len(node.value):,} digits")
    if node.tag in (_INTEGER, _FLOAT) and _OTHER_BASE.fullmatch(node.value):
        wrong = f"line {line}: {node.value} is a number of another base to YAML"
        raise BadInput(doing, wrong, "write it in decimal digits, or a text in quotes")
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_ambiguous(child, doing)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            # Lists and mappings as keys are refused when values are made, or by the recipe.
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    at = key.start_mark.line + 1
                    raise BadInput(doing, f"line {at}: '{key.value}' is there twice")
                seen.add(key.value)
            _refuse_ambiguous(key, doing)
            _refuse_ambiguous(value, doing)
