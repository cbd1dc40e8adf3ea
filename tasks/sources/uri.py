"""A source named in one word: `hf://org/name@revision`, `s3://bucket/prefix`, `file:///folder`, or
a plain path.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, GetJsonSchemaHandler, SerializeAsAny
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from weighbridge.core.errors import BadInput
from weighbridge.core.plugins import PluginArgs
from weighbridge.tasks.sources.base import SourceArgs, load_source


def parse(uri: str) -> SourceArgs:
    """Return the arguments that a URI stands for; without a scheme it is a path.

    Raises:
        BadInput: nobody knows the scheme, or the rest of the URI is malformed.
    """
    kind, separator, _ = uri.partition("://")
    return load_source(kind if separator else "file").parse(uri)


class UriOrMapping(PluginArgs):
    """Annotation for a recipe field that takes a URI or, for what a URI cannot say, a source's
    `Args`.
    """

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        variants = super().__get_pydantic_json_schema__(schema, handler)["anyOf"]
        return {"anyOf": [{"type": "string", "title": "URI", "minLength": 1}, *variants]}

    def _validate(self, value: Any) -> BaseModel:
        if isinstance(value, str):
            return _parse_field(value)
        if not isinstance(value, BaseModel | Mapping):
            raise PydanticCustomError(
                "source", "needs a URI such as hf://org/name@revision, or a mapping with `kind`"
            )
        return super()._validate(value)


def _parse_field(uri: str) -> SourceArgs:
    try:
        return parse(uri)
    except BadInput as exc:
        # Through a placeholder: pydantic reads braces in a message as placeholders of its own.
        raise PydanticCustomError("source", "{text}", {"text": str(exc)}) from exc


Location = Annotated[SerializeAsAny[SourceArgs], UriOrMapping("source")]
"""Type of a recipe field that says where bytes come from."""
