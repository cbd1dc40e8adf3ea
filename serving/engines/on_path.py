"""Engines that are a program on the PATH and speak OpenAI's API by themselves: each is a row of
data.

A row names the program, its options under its own names, and where its server differs from the
others. They are installed by other means than a lock of ours, mostly as containers, in which
Weighbridge finds them on the PATH.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, create_model, model_validator

from weighbridge.core.artifact import Format
from weighbridge.core.errors import Unavailable
from weighbridge.core.field_types import PathText, Word
from weighbridge.core.plugins import suggestion
from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs
from weighbridge.serving.engines.command_line import flags
from weighbridge.serving.openai_client import Client, post

# It holds no engine, only what a Bento needs around one: see on_path.in.
LOCK: Final = Path(__file__).with_suffix(".lock")
OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
"""They serve a folder: nothing is to be looked up, and nothing reported."""


class OnPathArgs(EngineArgs):
    """What the options of all of them have in common."""

    start_timeout: float = Field(
        900.0, gt=0, description="Seconds until the first real token must have come."
    )
    program: PathText = Field(
        "", description="The program, if it is not on the PATH under its own name."
    )

    # Before pydantic's own check, which would refuse the option without naming another.
    @model_validator(mode="before")
    @classmethod
    def _names_are_known(cls, options: Any) -> Any:
        """Refuse an option that the row does not list, and name the nearest one."""
        for name in set(options) - set(cls.model_fields) if isinstance(options, Mapping) else ():
            advice = suggestion(str(name), list(cls.model_fields))
            raise ValueError(f"there is no option '{name}'; {advice}")
        return options


Positive = Field(None, ge=1)
Share = Field(None, gt=0, lt=1)


@dataclass(frozen=True)
class EngineRow:
    """One engine."""

    name: str
    program: str
    install: str
    """How to get it, for the message that it is missing."""
    command: tuple[str, ...]
    """Words after the program; `{model}`, `{host}` and `{port}` are filled in."""
    options: Mapping[str, tuple[Any, Any]]
    """Type and field of every option. A flag is `--` and its name, as `dashed` says."""
    numerics: frozenset[str] = frozenset()
    """Options that change the numbers it computes with, and so its answers."""
    dashed: bool = True
    """Whether flags are written with dashes instead of underscores."""
    env: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    tokenize: Callable[[str, str], list[int]] | None = None
    """Takes the base URL of the server and a text; returns its token ids, without any added."""
    logprobs: Callable[[str, Sequence[int], Sequence[int]], list[float]] | None = None
    """Takes the base URL, prompt and completion; returns the completion's log-probabilities."""
    formats: frozenset[Format] = frozenset({"safetensors"})
    devices: frozenset[str] = frozenset({"cuda"})
    not_run: str = ""
    """Why the project's own tests cannot run it."""


class OnPath(Engine[OnPathArgs]):
    """The engine of a row."""

    row: ClassVar[EngineRow]

    def device(self) -> str:
        """Return the only kind of device that the program is for."""
        return next(iter(self.locks))

    def check(self, model: Path | None = None) -> None:
        """Raise Unavailable where the program is not on the PATH."""
        self._program()

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the program with its options. Raises Unavailable where it is not on the PATH."""
        row = self.row
        arguments = [word.format(model=model, host=host, port=port) for word in row.command]
        return [
            self._program(),
            *arguments,
            *flags(self.args.model_dump(include=set(row.options)), dashed=row.dashed),
        ]

    def _program(self) -> str:
        named = self.args.program or self.row.program
        if (program := shutil.which(named)) is None:
            raise Unavailable(
                f"starting {self.name}", f"there is no {named} on the PATH", self.row.install
            )
        return program

    def env(self) -> dict[str, str]:
        """Return variables by which it looks nothing up and reports nothing."""
        return {**OFFLINE, **self.row.env}

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Return what the row's function reads; without one its API cannot tell."""
        if self.row.logprobs is None:
            return super().token_logprobs(url, prompt, completion)
        return self.row.logprobs(url, prompt, completion)

    def tokenize(self, url: str, text: str) -> list[int]:
        """Return what the row's function reads; without one its API cannot tell."""
        if self.row.tokenize is None:
            return super().tokenize(url, text)
        return self.row.tokenize(url, text)


def _engine(row: EngineRow) -> type[OnPath]:
    """Return the plugin class of a row."""
    fields: dict[str, Any] = {"kind": (Literal[row.name], row.name), **row.options}
    args = create_model(
        f"{row.name}_args", __base__=OnPathArgs, __doc__=f"Options of {row.program}.", **fields
    )
    capabilities = Capabilities(
        devices=row.devices, metrics=True, extras={"not run": row.not_run} if row.not_run else {}
    )
    members = {
        "row": row,
        "name": row.name,
        "Args": args,
        "formats": row.formats,
        "capabilities": capabilities,
        "health": row.health,
        "numerics": row.numerics,
        "locks": dict.fromkeys(sorted(row.devices), LOCK),
        "__doc__": f"Serves by {row.program}.",
    }
    # A class for each row: a plugin is a class, whose `Args` give a recipe its schema.
    return type(row.name, (OnPath,), members)


def _tgi_tokens(url: str, text: str) -> list[int]:
    """Return the tokens that cover a letter: TGI adds special ones, which cover none."""
    return [
        int(token["id"])
        for token in post(f"{url}/tokenize", {"inputs": text})
        if token["stop"] > token["start"]
    ]


def _sglang_tokens(url: str, text: str) -> list[int]:
    body = {"model": Client(url).model, "prompt": text, "add_special_tokens": False}
    return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def _sglang_logprobs(url: str, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Return the log-probabilities of the completion, from SGLang's own route.

    It takes token ids and gives a value for each of them; for the first one it has none.
    """
    tokens = [*prompt, *completion]
    sampling = {"max_new_tokens": 1, "temperature": 0}
    body = {
        "input_ids": tokens,
        "sampling_params": sampling,
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    entries = post(f"{url}/generate", body)["meta_info"].get("input_token_logprobs") or []
    # An entry is the log-probability, the token's id and its text.
    if [entry[1] for entry in entries] != tokens:
        doing = "asking sglang for log-probabilities"
        raise Unavailable(
            doing, f"it told of {len(entries)} tokens, not of the {len(tokens)} it was given"
        )
    return [float(entry[0]) for entry in entries[len(prompt) :]]


ROWS: Final = (
    EngineRow(
        name="tgi",
        program="text-generation-launcher",
        install="run inside the image ghcr.io/huggingface/text-generation-inference, "
        "or set `program`",
        command=(
            "--model-id",
            "{model}",
            "--hostname",
            "{host}",
            "--port",
            "{port}",
            "--usage-stats",
            "off",
        ),
        options={
            "num_shard": (int | None, Positive),
            "dtype": (Literal["float16", "bfloat16"] | None, None),
            "quantize": (Word | None, None),
            "kv_cache_dtype": (Literal["fp8_e4m3fn", "fp8_e5m2"] | None, None),
            "speculate": (int | None, Positive),
            "max_concurrent_requests": (int | None, Positive),
            "max_input_tokens": (int | None, Positive),
            "max_total_tokens": (int | None, Positive),
            "max_batch_prefill_tokens": (int | None, Positive),
            "max_batch_total_tokens": (int | None, Positive),
            "max_batch_size": (int | None, Positive),
            "cuda_graphs": (Word | None, None),
            "cuda_memory_fraction": (float | None, Share),
        },
        numerics=frozenset({"dtype", "quantize", "kv_cache_dtype"}),
        tokenize=_tgi_tokens,
        formats=frozenset({"safetensors", "compressed_tensors"}),
        not_run="no package index carries text-generation-launcher",
    ),
    EngineRow(
        name="sglang",
        program="sglang",
        install="run: pip install sglang, on a machine with a GPU, or set `program`",
        command=(
            "serve",
            "--model-path",
            "{model}",
            "--host",
            "{host}",
            "--port",
            "{port}",
            "--enable-metrics",
        ),
        options={
            "served_model_name": (Word, "model"),
            "dtype": (
                Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None,
                None,
            ),
            "quantization": (Word | None, None),
            "kv_cache_dtype": (Word | None, None),
            "context_length": (int | None, Positive),
            "tp_size": (int | None, Positive),
            "dp_size": (int | None, Positive),
            "mem_fraction_static": (float | None, Share),
            "max_running_requests": (int | None, Positive),
            "max_total_tokens": (int | None, Positive),
            "chunked_prefill_size": (int | None, None),
            # Not `disable_cuda_graph`: SGLang has retired it.
            "disable_radix_cache": (bool, False),
        },
        numerics=frozenset({"dtype", "quantization", "kv_cache_dtype"}),
        tokenize=_sglang_tokens,
        formats=frozenset({"safetensors", "compressed_tensors"}),
        logprobs=_sglang_logprobs,
        not_run="it needs a CUDA GPU",
    ),
    EngineRow(
        name="tensorrt_llm",
        program="trtllm-serve",
        install="run inside the image nvcr.io/nvidia/tensorrt-llm/release, or set `program`",
        command=("serve", "{model}", "--host", "{host}", "--port", "{port}"),
        options={
            "backend": (Literal["pytorch", "tensorrt", "_autodeploy"] | None, None),
            "max_batch_size": (int | None, Positive),
            "max_num_tokens": (int | None, Positive),
            "max_seq_len": (int | None, Positive),
            "tp_size": (int | None, Positive),
            "pp_size": (int | None, Positive),
            "ep_size": (int | None, Positive),
            "kv_cache_free_gpu_memory_fraction": (float | None, Share),
        },
        # trtllm-serve writes its own flags so: --max_batch_size.
        dashed=False,
        not_run="it needs a CUDA GPU",
    ),
)
"""All of them. A new one is a row here, and its line in `core/plugins.py`."""

Tgi, Sglang, TensorrtLlm = (_engine(row) for row in ROWS)
