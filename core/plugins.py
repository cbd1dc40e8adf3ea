"""Plugins by name: built-in ones in a table, third parties through one entry-point group.

A plugin is a class. What it must offer stands beside each point's base class or protocol, and
third parties find all of them in `weighbridge.plugins`. A package declares its plugin in its
metadata::

    [project.entry-points."weighbridge.plugins.v1"]
    "engine.my_engine" = "my_package.engine:MyEngine"
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from weighbridge.core.errors import BadInput

Point = Literal["source", "optimizer", "engine", "metric", "target"]
GROUP = "weighbridge.plugins.v1"

BUILT_IN: Mapping[Point, Mapping[str, str]] = {
    "source": {
        "file": "weighbridge.tasks.sources.file:FileSource",
        "hf": "weighbridge.tasks.sources.hf:HubSource",
        "s3": "weighbridge.tasks.sources.s3:S3Source",
    },
    "optimizer": {
        "none": "weighbridge.tasks.optimizers.none:Unchanged",
        "adapter": "weighbridge.tasks.optimizers.adapter:Adapter",
        "gguf": "weighbridge.tasks.optimizers.gguf:Gguf",
        "compressed_tensors": "weighbridge.tasks.optimizers.compressed_tensors:CompressedTensors",
        "onnx": "weighbridge.tasks.optimizers.onnx:Onnx",
    },
    "engine": {
        "llama_cpp": "weighbridge.serving.engines.llama_cpp:LlamaCpp",
        "vllm": "weighbridge.serving.engines.vllm:Vllm",
        "transformers": "weighbridge.serving.engines.transformers:Transformers",
        "openai": "weighbridge.serving.engines.openai:OpenAI",
        "onnx": "weighbridge.serving.engines.onnx:Onnx",
        "triton": "weighbridge.serving.engines.triton:Triton",
        "triton_vllm": "weighbridge.serving.engines.triton_vllm:TritonVllm",
        "tvm": "weighbridge.serving.engines.tvm:Tvm",
        "tgi": "weighbridge.serving.engines.on_path:Tgi",
        "sglang": "weighbridge.serving.engines.on_path:Sglang",
        "tensorrt_llm": "weighbridge.serving.engines.on_path:TensorrtLlm",
        "replay": "weighbridge.serving.engines.replay:Replay",
    },
    "metric": {
        "exact_match": "weighbridge.tasks.metrics.shipped:ExactMatch",
        "json_fields": "weighbridge.tasks.metrics.shipped:JsonFields",
        "rouge_l": "weighbridge.tasks.metrics.shipped:RougeL",
        "bleu": "weighbridge.tasks.metrics.shipped:Bleu",
        "nll": "weighbridge.tasks.metrics.shipped:Nll",
        "kl": "weighbridge.tasks.metrics.kl:Kl",
        "judge": "weighbridge.tasks.metrics.judge:Judge",
        "hub": "weighbridge.tasks.metrics.hub:HubMetric",
    },
    "target": {
        "local": "weighbridge.serving.targets.local:Local",
        "kubernetes": "weighbridge.serving.targets.kubernetes.target:Kubernetes",
    },
}


@cache
def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names(point: Point) -> list[str]:
    """Return every name that `load` knows at this point, built-in ones first."""
    prefix = f"{point}."
    return [
        *BUILT_IN[point],
        *(name.removeprefix(prefix) for name in _third_party() if name.startswith(prefix)),
    ]


@cache
def load(point: Point, name: str) -> Any:
    """Return the plugin's class.

    Its type is not known here: beside each base stands a typed function that callers use, such as
    `engine_class`.

    Raises:
        BadInput: No plugin has this name; the nearest one is named.
    """
    if name in BUILT_IN[point]:
        module, attribute = BUILT_IN[point][name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if entry := _third_party().get(f"{point}.{name}"):
        return entry.load()
    raise BadInput(f"looking for {point} '{name}'", "there is none", suggestion(name, names(point)))


def suggestion(name: str, known: list[str]) -> str:
    """Return advice after an unknown name: the known one that is nearest, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"


@dataclass(frozen=True)
class PluginArgs:
    """Annotation for a recipe field that holds one plugin's `Args`, told apart by `kind`.

    Validation looks up the plugin that `kind` names and validates with its `Args`. The JSON schema
    is a plain `anyOf`: Prefect's run form shows that as a switch with fields, a discriminated union
    only as raw JSON.
    """

    point: Point

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # Not a union of all: that would import every plugin, and its errors name them all.
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self._dump, info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        variants = [
            handler(TypeAdapter(load(self.point, name).Args).core_schema)
            for name in names(self.point)
        ]
        return {"anyOf": variants}

    def _validate(self, value: Any) -> BaseModel:
        # Made by a caller in Python, and validated then.
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
            kinds = ", ".join(names(self.point))
            raise PydanticCustomError(
                "plugin_kind", "needs a `kind`, one of: {known}", {"known": kinds}
            )
        try:
            plugin = load(self.point, value["kind"])
        except BadInput as exc:
            text = f"no {self.point} is called '{value['kind']}'; {exc.remedy}"
            raise PydanticCustomError("plugin_kind", "{text}", {"text": text}) from exc
        args: BaseModel = plugin.Args.model_validate(value)
        return args

    def _dump(self, value: BaseModel, info: core_schema.SerializationInfo) -> Any:
        return value.model_dump(
            mode=info.mode, exclude_unset=info.exclude_unset, by_alias=info.by_alias
        )
