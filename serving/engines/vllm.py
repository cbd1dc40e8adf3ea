"""vLLM's own OpenAI server, in its locked environment: its CUDA build on a GPU, its CPU build on a
processor.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from weighbridge.core.artifact import Format
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.field_types import Word
from weighbridge.serving.engines import vllm_client
from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs
from weighbridge.serving.engines.command_line import guarded
from weighbridge.serving.engines.devices import nvidia_devices
from weighbridge.serving.engines.vllm_requirements import holds_fp8, require_gpus, why_no_fp8
from weighbridge.serving.openai_client import BASE_SUFFIX

QUIET: Final = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""It serves a folder: nothing is to be looked up, and nothing reported."""
CPU_KVCACHE_GIB: Final = 1
"""What the CPU build takes for its cache when nobody says how much; by itself it would take nearly
all memory.
"""
CPU_SERVER: Final = (
    "import gc; gc.disable(); "
    "from vllm.entrypoints.launchers.api_server.entry import main; "
    "gc.freeze(); gc.enable(); main()"
)
"""The same server as `vllm serve`: the CPU build's `vllm` asks for the version of a package that is
called otherwise.

No module that is run (`-m`): the processes that it starts would each import the server once more.
Of five thousand modules none becomes garbage: to look for it takes an eighth of their import.
"""
FORKED: Final = (
    "from multiprocessing import context; context.SpawnContext.Process = context.ForkProcess; "
)
"""Has the engine's process begin as a copy of the first one, with its modules.

vLLM has it begin anew on every processor, to load an OpenMP into it that keeps threads on their
cores. Where no thread is bound to any, that only means to import vLLM twice, which is nearly half
of a start. Nor does a copy take seconds to end, as a process does that tears its modules down.
"""
RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the highest rank of adapters."""
ROOT_CAUSE: Final = re.compile(r"ERROR .*?\] ([\w.]*(?:Error|Exception): .*)")
"""What one of its processes says before the others say that it has ended."""
NOT_FLAGS: Final = frozenset(
    {
        "kind",
        "start_timeout",
        "temperature",
        "top_p",
        "device",
        "lora_modules",
        "speculative_config",
        "allow_runtime_lora_updating",
        "cpu_kvcache_space",
        "cpu_omp_threads_bind",
    }
)
"""Options that are not a flag of the same name with one value."""
CPU_ONLY: Final = ("cpu_kvcache_space", "cpu_omp_threads_bind")
CUDA_ONLY: Final = ("gpu_memory_utilization",)

Device = Literal["cuda", "cpu"]


class SpeculativeConfig(BaseModel):
    """Guess several tokens ahead and have the model check them; vLLM's `--speculative-config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "medusa", "mtp", "suffix"] = Field(
        "ngram", description="Who guesses; `ngram` looks the prompt up and needs no second model."
    )
    num_speculative_tokens: int = Field(3, ge=1, le=64, description="Tokens guessed at a time.")
    model: Word | None = Field(
        None, description="Folder of the guessing model, for the methods that have one."
    )
    prompt_lookup_min: int | None = Field(
        None, ge=1, description="Shortest run of tokens that `ngram` looks up."
    )
    prompt_lookup_max: int | None = Field(
        None, ge=1, description="Longest run of tokens that `ngram` looks up."
    )

    @model_validator(mode="after")
    def _has_its_model(self) -> "SpeculativeConfig":
        needs_no_model = self.method in ("ngram", "suffix", "mtp")
        if not needs_no_model and not self.model:
            raise ValueError(f"{self.method} needs `model`, the folder of the model that guesses")
        return self


class VllmArgs(EngineArgs):
    """Options of `vllm serve`, under their own names; CPU ones are its environment variables,
    without `VLLM_`.
    """

    kind: Literal["vllm"] = "vllm"
    start_timeout: float = Field(
        900.0, gt=0, description="Seconds until the first real token must have come."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: the GPU where there is one, else the processor."
    )
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = Field(
        "auto", description="Number format of weights and activations."
    )
    quantization: Word | None = Field(
        None, description="Such as `fp8`; open: as the model's configuration says."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Tokens of context; open: the model's own."
    )
    max_num_seqs: int | None = Field(None, ge=1, description="Requests decoded together.")
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Tokens processed in one step."
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of the GPU's memory it may take; cuda alone."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs every layer is spread over; on cpu, groups of cores."
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, description="Groups of GPUs that hold layers one after another."
    )
    kv_cache_dtype: Word = Field("auto", description="Number format of cached keys and values.")
    enforce_eager: bool = Field(
        False, description="No compilation, no CUDA graphs: starts faster, answers slower."
    )
    enable_prefix_caching: bool = Field(True, description="Keep what prompts have in common.")
    speculative_config: SpeculativeConfig | None = Field(
        None, description="Guess tokens ahead; open: don't."
    )
    enable_lora: bool = Field(False, description="Serve LoRA adapters beside the model.")
    lora_modules: dict[Word, Word] = Field(
        default_factory=dict,
        description="Adapters loaded at start, name: folder. A request asks for one as `model`.",
    )
    max_loras: int | None = Field(None, ge=1, description="Adapters in one batch.")
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] | None = Field(
        None, description="Highest rank among the adapters; open: 16."
    )
    allow_runtime_lora_updating: bool = Field(
        False,
        description="Adapters come and go by /v1/load_lora_adapter while it serves: "
        "whoever reaches it may.",
    )
    # Answers end before the SIGKILL that follows after 10 s: `Process.stop`.
    shutdown_timeout: int = Field(
        6, ge=0, description="Seconds that answers under way get after SIGTERM; 0 cuts them."
    )
    served_model_name: Word = Field("model", description="Name of the model in `/v1/models`.")
    cpu_kvcache_space: int | None = Field(
        None,
        ge=1,
        description="GiB of memory for cached keys and values; cpu alone. "
        f"Open: {CPU_KVCACHE_GIB}.",
    )
    cpu_omp_threads_bind: Annotated[str, Field(pattern=r"^(auto|nobind|[0-9,|-]+)$")] | None = (
        Field(
            None,
            description="Cores the threads are bound to, such as `0-3`, one group per rank; "
            "cpu alone. Open: auto.",
        )
    )

    @model_validator(mode="after")
    def _fits_its_device(self) -> "VllmArgs":
        if self.device != "auto" and (wrong := _wrong_for_device(self, self.device)):
            raise ValueError(wrong)
        if (self.lora_modules or self.allow_runtime_lora_updating) and not self.enable_lora:
            raise ValueError("adapters need `enable_lora: true`")
        if self.served_model_name in self.lora_modules:
            raise ValueError(f"an adapter and the model are both called '{self.served_model_name}'")
        return self


class Vllm(Engine[VllmArgs]):
    """Serves a folder of safetensors; one with an adapter in `adapters/<digest>/` as the two
    together.
    """

    name: ClassVar[str] = "vllm"
    Args: ClassVar[type[EngineArgs]] = VllmArgs
    name_option: ClassVar[str] = "served_model_name"
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors", "compressed_tensors", "peft"})
    locks: ClassVar[Mapping[str, Path]] = {
        "cuda": Path(__file__).with_suffix(".lock"),
        "cpu": Path(__file__).with_name("vllm_cpu.lock"),
    }
    # What it compiles for a device at its start is C.
    system_packages: ClassVar[tuple[str, ...]] = ("g++",)
    packages: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda", "cpu"}), lora=True, metrics=True
    )
    numerics: ClassVar[frozenset[str]] = frozenset({"dtype", "quantization", "kv_cache_dtype"})

    def device(self) -> Device:
        """Return the device that was given; else the GPU where there is one."""
        if self.args.device != "auto":
            return self.args.device
        return "cuda" if nvidia_devices() else "cpu"

    def check(self, model: Path | None = None) -> None:
        """Refuse what cannot run here, before an environment of gigabytes is built for it.

        Raises:
            Unavailable: The devices it asks for are not there, or cannot do what it asks of them.
            BadInput: Options that mean nothing on the device.
        """
        args, device, doing = self.args, self.device(), "starting vllm"
        if wrong := _wrong_for_device(args, device):
            raise BadInput(doing, wrong)
        if device == "cuda":
            require_gpus(_ranks(args), doing)
        if device == "cpu" and args.quantization == "fp8":
            remedy = (
                "give it FP8 weights (`kind: compressed_tensors`, `scheme: FP8_DYNAMIC`), or a GPU"
            )
            raise Unavailable(
                doing, "its CPU build cannot make weights FP8 while it loads them", remedy
            )
        needs_fp8 = args.quantization == "fp8" or (model is not None and holds_fp8(model))
        if needs_fp8 and (why := why_no_fp8(device)):
            raise Unavailable(doing, why, "use a newer GPU, or int8 weights")

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of vLLM's server out of the locked environment.

        Isolated (`-I`), because this file is named like the library.
        """
        if self.device() == "cuda":
            program = [str(python), "-I", str(python.with_name("vllm")), "serve", str(model)]
        else:
            server = FORKED + CPU_SERVER if self._is_unbound() else CPU_SERVER
            program = [str(python), "-I", "-c", server, "--model", str(model)]
        address = ["--host", host, "--port", str(port)]
        # Guarded: where vLLM's first process is killed, its engine and workers would go on for
        # ever, with their memory.
        return guarded([*program, *address, *_options(_with_adapter(self.args, model))], python)

    def model_names(self) -> frozenset[str]:
        """Return the model's name, those of the adapters that the recipe names, and that of the
        base where the model is an adapter. None where more of them may be loaded at any time.
        """
        name, adapters = self.args.served_model_name, self.args.lora_modules
        if self.args.allow_runtime_lora_updating:
            return frozenset()
        return frozenset({name, f"{name}{BASE_SUFFIX}", *adapters})

    def env(self) -> dict[str, str]:
        """Return variables by which it looks nothing up and reports nothing, and the options that
        it takes no other way.
        """
        args, variables = self.args, dict(QUIET)
        if args.allow_runtime_lora_updating:
            variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self.device() == "cpu":
            variables["VLLM_TARGET_DEVICE"] = "cpu"
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(args.cpu_kvcache_space or CPU_KVCACHE_GIB)
            if args.cpu_omp_threads_bind:
                variables["VLLM_CPU_OMP_THREADS_BIND"] = args.cpu_omp_threads_bind
            if self._is_unbound():
                # A worker needs a process of its own where its threads are bound to cores. Without,
                # it is in the engine's: one import of vLLM less, and its memory.
                variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return variables

    def _is_unbound(self) -> bool:
        """Return whether one worker serves on the CPU, whose threads may run on any core."""
        return (
            self.device() == "cpu"
            and self.args.cpu_omp_threads_bind == "nobind"
            and _ranks(self.args) == 1
        )

    def tunings(self, cores: int) -> Sequence[VllmArgs]:
        """Return the arguments as they are: the engine sizes itself.

        The device is settled, so that what is weighed here is what ships.
        """
        return [self.args.model_copy(update={"device": self.device()})]

    def reason(self, log: str) -> str | None:
        """Return why it did not start, in its own words; None where it does not say."""
        cause = ROOT_CAUSE.search(log)
        return cause[1] if cause else None

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Return the natural-log probability of every completion token."""
        return vllm_client.token_logprobs(url, prompt, completion)

    def token_distributions(
        self, url: str, prompt: Sequence[int], completion: Sequence[int], top: int
    ) -> list[dict[int, float]]:
        """Return the likeliest tokens at every completion token, read as part of a prompt."""
        return vllm_client.token_distributions(url, prompt, completion, top)

    def tokenize(self, url: str, text: str) -> list[int]:
        """Return the token ids of a text: special tokens parsed, none added."""
        return vllm_client.tokenize(url, text)

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat, up to where the answer begins."""
        return vllm_client.chat_tokens(url, messages)


def _ranks(args: VllmArgs) -> int:
    """Return how many workers hold the model together."""
    return args.tensor_parallel_size * args.pipeline_parallel_size


def _options(args: VllmArgs) -> list[str]:
    arguments: list[str] = []
    for name, value in args.model_dump(exclude=set(NOT_FLAGS)).items():
        flag = name.replace("_", "-")
        # Both ways: some of vLLM's switches are on where nobody says.
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments += [f"--{flag}", str(value)]
    # Else it tells nobody what part of a prompt it had in its prefix cache.
    arguments.append("--enable-prompt-tokens-details")
    # Over those of the model's own `generation_config.json`, which vLLM would take.
    arguments += ["--override-generation-config", json.dumps(args.sampling())]
    if args.speculative_config:
        arguments += [
            "--speculative-config",
            args.speculative_config.model_dump_json(exclude_none=True),
        ]
    if args.lora_modules:
        arguments += [
            "--lora-modules",
            *(f"{name}={folder}" for name, folder in args.lora_modules.items()),
        ]
    return arguments


def _with_adapter(args: VllmArgs, model: Path) -> VllmArgs:
    """Return the arguments with the adapter that lies in the model's folder, if one does.

    It goes by the model's name, and by one that no other adapter ever has: vLLM keeps what prompts
    have in common by the adapter's name, and takes one adapter for another of the same name
    (vllm#42125).
    """
    folder = next(iter(sorted(model.glob("adapters/*"))), None)
    if folder is None:
        return args
    name = args.served_model_name
    wanted = max(_rank(folder), args.max_lora_rank or 1)
    # A rank above all of them is vLLM's own to refuse.
    rank = next((rank for rank in RANKS if rank >= wanted), wanted)
    named = {name: str(folder), f"{name}-{folder.name}": str(folder)}
    return args.model_copy(
        update={
            # The model's own name is the adapter's now: whoever asks for it wants the two together.
            "served_model_name": f"{name}{BASE_SUFFIX}",
            "enable_lora": True,
            "max_lora_rank": rank,
            "lora_modules": {**named, **args.lora_modules},
        }
    )


def _rank(adapter: Path) -> int:
    """Return the highest rank in a PEFT adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def _wrong_for_device(args: VllmArgs, device: str) -> str | None:
    """Return what is wrong with options of another device; None where none was given."""
    other, names = ("cpu", CPU_ONLY) if device == "cuda" else ("cuda", CUDA_ONLY)
    misplaced = [f"`{name}`" for name in names if getattr(args, name) is not None]
    if not misplaced:
        return None
    remedy = f"leave it out, or set `device: {other}`"
    return f"{' and '.join(misplaced)} means nothing on {device}; {remedy}"
