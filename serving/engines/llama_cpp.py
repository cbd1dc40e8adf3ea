"""llama.cpp's own server, from the wheel `xllamacpp` or built for this processor."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.field_types import Word
from weighbridge.core.gguf_header import read_metadata
from weighbridge.core.machine import limited_cores
from weighbridge.core.settings import Settings
from weighbridge.serving.engines import llama_cpp_client
from weighbridge.serving.engines.base import (
    AUTO_CONTEXT,
    AUTO_SLOTS,
    Capabilities,
    Engine,
    EngineArgs,
)
from weighbridge.serving.engines.command_line import flags, variations
from weighbridge.serving.openai_client import get

LAUNCHER: Final = Path(__file__).with_name("llama_cpp_server.py")
SPINS: Final = 3000
"""Turns that a thread waits actively for another: see `LlamaCpp.env` for what was measured."""
MOST_SLOTS: Final = 256
"""As many as llama-server takes."""

UNQUANTIZED: Final = frozenset({"f32", "f16", "bf16"})
"""Number formats of cached values that need no flash attention."""
CACHE_BITS: Final = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}
"""Of one cached number, scales of its block included."""

WITH_SIZES: Final = frozenset({"ngram-simple", "ngram-map-k", "ngram-map-k4v"})
"""Ways to draft whose sizes can be given."""

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class LlamaCppArgs(EngineArgs):
    """Options of llama-server, under their own names; what is left open is measured here."""

    kind: Literal["llama_cpp"] = "llama_cpp"
    build: Literal["wheel", "native", "auto"] = Field(
        "wheel",
        description="`native`: llama-server found on the PATH or built for this processor; "
        "`auto`: native where there is one.",
    )
    ctx_size: int | None = Field(
        None,
        ge=256,
        description="Tokens of context of all slots together; open: `weigh.context` per slot.",
    )
    parallel: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Slots: requests decoded together; open: the highest `weigh.concurrency`.",
    )
    kv_unified: bool | None = Field(
        None,
        description="Slots share one pool of context; "
        "open: only where ctx_size is given and parallel is not.",
    )
    threads: int | None = Field(None, ge=1, le=512, description="Threads that generate.")
    threads_batch: int | None = Field(
        None, ge=1, le=512, description="Threads that read prompts; open: as `threads`."
    )
    batch_size: int = Field(2048, ge=1, description="Most tokens of one logical batch.")
    ubatch_size: int = Field(512, ge=1, description="Most tokens of one physical batch.")
    n_gpu_layers: int | None = Field(
        None, ge=0, description="Layers kept on the GPU; open: as many as fit."
    )
    flash_attn: Literal["auto", "on", "off"] = Field("auto", description="Flash attention.")
    cache_type_k: CacheType = Field("f16", description="Number format of cached keys.")
    cache_type_v: CacheType = Field("f16", description="Number format of cached values.")
    cache_prompt: bool = Field(
        True, description="Keep of each slot's prompt what the next one begins with as well."
    )
    cache_ram: int = Field(
        256, ge=0, description="Most MiB kept of prompts that no slot holds any more."
    )
    spec_type: Literal[
        "none", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"
    ] = Field(
        "none",
        description="Speculative decoding: what followed the same tokens earlier in prompt and "
        "answer is drafted, and the model checks it in one step. Answers stay the same.",
    )
    spec_ngram_size_n: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Tokens that must be the same for a draft, with ngram-simple, -map-k and "
        "-map-k4v; open: 12.",
    )
    spec_ngram_size_m: int | None = Field(
        None, ge=1, le=1024, description="Most tokens of a draft, with the same three; open: 48."
    )
    alias: Word = Field("model", description="Name of the model in `/v1/models`.")


class LlamaCpp(Engine[LlamaCppArgs]):
    """Serves one GGUF file, and the adapter that may lie beside it."""

    name: ClassVar[str] = "llama_cpp"
    Args: ClassVar[type[EngineArgs]] = LlamaCppArgs
    name_option: ClassVar[str] = "alias"
    formats: ClassVar[frozenset[Format]] = frozenset({"gguf"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_suffix(".lock")}
    # OpenMP, which its wheel does not bring along.
    system_packages: ClassVar[tuple[str, ...]] = ("libgomp1",)
    packages: ClassVar[tuple[str, ...]] = ("xllamacpp",)
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(devices=frozenset({"cpu"}), metrics=True)
    builds_natively: ClassVar[bool] = True
    takes_sizes: ClassVar[bool] = True
    numerics: ClassVar[frozenset[str]] = frozenset({"cache_type_k", "cache_type_v"})

    def check(self, model: Path | None = None) -> None:
        """Refuse what llama.cpp itself refuses once it has loaded the model."""
        args = self.args
        if args.flash_attn == "off" and args.cache_type_v not in UNQUANTIZED:
            raise BadInput(
                "checking the options of llama_cpp",
                f"cache_type_v {args.cache_type_v} needs flash attention, and flash_attn is off",
                "leave flash_attn out, or take f16",
            )
        sized = args.spec_ngram_size_n or args.spec_ngram_size_m
        if sized and args.spec_type not in WITH_SIZES:
            raise BadInput(
                "checking the options of llama_cpp",
                f"spec_type {args.spec_type} has no spec_ngram_size_n and no spec_ngram_size_m",
                f"leave both out, or take one of {', '.join(sorted(WITH_SIZES))}",
            )

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of the native server, or of the launcher that takes the same
        options.
        """
        server = _native(self.args)
        program = [str(server)] if server else [str(python), "-I", str(LAUNCHER)]
        weights = model / "model.gguf"
        return [
            *program,
            "--model",
            str(weights),
            "--host",
            host,
            "--port",
            str(port),
            *_options(weights, self.args),
            *_adapter(model),
        ]

    @classmethod
    def build_native(cls, cache: Path) -> Path:
        """Build llama-server and the quantizing tools for this processor; return their folder."""
        from weighbridge.serving import llama_cpp_native

        return llama_cpp_native.build(cache)

    def env(self) -> dict[str, str]:
        """Let threads that wait for each other spin for microseconds, then sleep.

        By default they spin for milliseconds, and where the processor has other work as well, one
        that spins keeps the one it waits for from running. Tokens/s of the demo's model with two
        threads on two cores, both idle or one busy with something else: 2,400 and 40 by default,
        2,360 and 150 with SPINS turns, 450 and 810 without any.
        """
        return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", str(SPINS))}

    def sized_for(self, model: Path, tokens: int, answers: int) -> LlamaCppArgs:
        """Return the arguments with a slot for each answer, and that context in each.

        The cache of keys and values is reserved for all of it when the server starts.
        """
        args, slots = self.args, self.args.parallel or min(answers, MOST_SLOTS)
        each = min(trained_context(model / "model.gguf"), tokens)
        return args.model_copy(
            update={
                "parallel": slots,
                "ctx_size": args.ctx_size or slots * each,
                "kv_unified": _is_shared(args),
            }
        )

    def tunings(self, cores: int) -> Sequence[LlamaCppArgs]:
        """Return every number of threads worth trying."""
        # Half of the cores as well: with a thread for each, other work on the machine makes all of
        # them wait at every barrier (3 to 10 times slower).
        threads = sorted({max(1, cores // 2), cores})
        return variations(self.args, threads=threads)

    def choices(self, cores: int, answers: int) -> Mapping[str, Sequence[Any]]:
        """Return threads, slots, physical batches and flash attention; number formats of the cache
        are only tried where a recipe names them: they cost quality.
        """
        slots = min(answers, MOST_SLOTS)
        tried: dict[str, Sequence[Any]] = {
            "threads": sorted({max(1, cores // 2), cores}),
            "parallel": list(dict.fromkeys([slots, max(1, slots // 2)])),
            "ubatch_size": [512, 128],
            "flash_attn": ["auto", "off"],
        }
        return {name: values for name, values in tried.items() if len(values) > 1}

    def least_memory(self, model: Path) -> int:
        """Return the bytes of the weights and of the cache that is reserved at the start."""
        return super().least_memory(model) + _cache_bytes(model / "model.gguf", self.args)

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Force the completion token by token and read what the model itself thought of each.

        Raises:
            Unavailable: The server does not answer, or does not do as it is told.
        """
        known = self.token_distributions(url, prompt, completion, 1)
        return [one[token] for one, token in zip(known, completion, strict=True)]

    def token_distributions(
        self, url: str, prompt: Sequence[int], completion: Sequence[int], top: int
    ) -> list[dict[int, float]]:
        """Force the completion token by token and read what the model itself held likely at each.

        Raises:
            Unavailable: The server does not answer, or does not do as it is told.
        """
        # llama-server tells nothing of tokens that it drafted, and drafts none of a single one.
        at_once = llama_cpp_client.FORCED_AT_ONCE if self.args.spec_type == "none" else 1
        return llama_cpp_client.token_distributions(url, prompt, completion, top, at_once)

    def context(self, url: str) -> int | None:
        """Return the context of one slot: the server divides what it has among them."""
        return int(get(f"{url}/props")["default_generation_settings"]["n_ctx"])

    def tokenize(self, url: str, text: str) -> list[int]:
        """Return the token ids of a text: special tokens parsed, none added."""
        return llama_cpp_client.tokenize(url, text)

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat, up to where the answer begins."""
        return llama_cpp_client.chat_tokens(url, messages)


def _native(args: LlamaCppArgs) -> Path | None:
    if args.build == "wheel":
        return None
    from weighbridge.serving import llama_cpp_native

    server = llama_cpp_native.tool("llama-server", Settings().cache)
    if server is None and args.build == "native":
        remedy = "run: weighbridge engines install llama_cpp --native"
        raise Unavailable("starting llama_cpp", "there is no native llama-server", remedy)
    return server


def _options(weights: Path, args: LlamaCppArgs) -> list[str]:
    slots = args.parallel or AUTO_SLOTS
    context = args.ctx_size or slots * min(trained_context(weights), AUTO_CONTEXT)
    # llama.cpp counts the cores that a container's quota leaves unused.
    threads = args.threads or limited_cores()
    options: dict[str, object] = {
        "alias": args.alias,
        "temp": args.temperature,
        "top-p": args.top_p,
        "ctx-size": context,
        "parallel": slots,
        "threads": threads,
        "threads-batch": args.threads_batch or threads,
        "batch-size": args.batch_size,
        "ubatch-size": args.ubatch_size,
        "n-gpu-layers": args.n_gpu_layers,
        "flash-attn": args.flash_attn,
        "cache-type-k": args.cache_type_k,
        "cache-type-v": args.cache_type_v,
        "cache-ram": args.cache_ram,
    }
    return [
        *flags(options),
        *_drafting(args),
        "--kv-unified" if _is_shared(args) else "--no-kv-unified",
        "--cache-prompt" if args.cache_prompt else "--no-cache-prompt",
        # The chat template in the file itself, not the one built in that looks most like it.
        "--jinja",
        "--metrics",
        "--no-webui",
    ]


def _drafting(args: LlamaCppArgs) -> list[str]:
    kind = args.spec_type
    if kind == "none":
        return []
    sizes = {
        f"spec-{kind}-size-n": args.spec_ngram_size_n,
        f"spec-{kind}-size-m": args.spec_ngram_size_m,
    }
    return flags({"spec-type": kind, **sizes})


def _is_shared(args: LlamaCppArgs) -> bool:
    """Whether slots share one pool of context."""
    if args.kv_unified is not None:
        return args.kv_unified
    return args.ctx_size is not None and args.parallel is None


def _adapter(model: Path) -> list[str]:
    """Return the option of an adapter that is applied to every request."""
    adapter = model / "adapter.gguf"
    return ["--lora", str(adapter)] if adapter.exists() else []


def _cache_bytes(weights: Path, args: LlamaCppArgs) -> int:
    """Return the bytes of the cache of keys and values; 0 where the file does not say enough."""
    try:
        values = {
            key.rpartition(".")[2] if "attention" not in key else key.partition(".")[2]: entry
            for key, entry in read_metadata(weights).items()
        }
        layers = int(values["block_count"].content or 0)
        width = int(values["embedding_length"].content or 0)
        heads = int(values["attention.head_count"].content or 1)
        groups = values.get("attention.head_count_kv", values["attention.head_count"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    share = int(groups.content) / heads if isinstance(groups.content, int) else 1.0
    bits = CACHE_BITS[args.cache_type_k] + CACHE_BITS[args.cache_type_v]
    return round((args.ctx_size or 0) * layers * width * share * bits / 8)


def trained_context(weights: Path) -> int:
    """Return the tokens of context that a GGUF file's model was made for.

    Raises:
        BadInput: It is no GGUF file, or does not say.
    """
    try:
        metadata = read_metadata(weights)
    except (OSError, ValueError) as exc:
        raise BadInput(f"reading {weights}", f"it is not a GGUF file: {exc}") from exc
    for key, value in metadata.items():
        if key.endswith(".context_length") and isinstance(value.content, int):
            return value.content
    raise BadInput(f"reading {weights}", "it does not say how long its context is")
