"""A model that transformers holds, behind the shim.

Runs inside the engine's environment, by path and isolated (`python -I`): beside it lie modules
named like packages.
"""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]

from weighbridge.core.machine import limited_cores
from weighbridge.serving.shim.protocol import Sampling, Token, TokenStream
from weighbridge.serving.shim.server import add_options, sampling_of, serve


class Loaded:
    """The model and its tokenizer, as a `Generator` of the shim."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        self._tokenizer = AutoTokenizer.from_pretrained(options.model, **local)
        model = AutoModelForCausalLM.from_pretrained(
            options.model,
            dtype=options.dtype,
            attn_implementation=options.attn_implementation,
            use_safetensors=True,
            **local,
        )
        self._model = model.to(options.device).eval()
        self._device = options.device
        # A fast tokenizer may not be asked by two threads at a time.
        self._one_at_a_time = threading.Lock()
        trained_context = int(model.config.get_text_config().max_position_embeddings)
        self.context = min(options.max_length or trained_context, trained_context)
        self.slots = options.slots
        self.ends = frozenset(
            _ends(model.generation_config.eos_token_id, self._tokenizer.eos_token_id)
        )

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        with self._one_at_a_time:
            ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        with self._one_at_a_time:
            return str(
                self._tokenizer.decode(
                    list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as exc:  # it is a program: a range too long, a name that is not there, …
            raise ValueError(str(exc) or type(exc).__name__) from exc
        # The template writes every special token itself.
        return self.tokenize(str(text), special=False)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        import torch

        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed % 2**64)
        ids, past = list(prompt), None
        for _ in range(sampling.max_tokens):
            logits, past = self._step(ids, past)
            token = draw(logits, sampling, generator)
            yield _with_logprobs(token, logits, sampling.logprobs)
            if token in self.ends:
                return
            ids = [token]

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        import torch

        if not completion:
            return []
        ids = torch.tensor([[*prompt, *completion]], device=self._device)
        with torch.inference_mode():
            # Only the logits that are asked for: all of a long prompt's would fill the memory.
            logits = self._model(
                input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1
            ).logits[0, :-1]
            picked = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
        return [float(value) for value in picked[:, 0].tolist()]

    def _step(self, ids: list[int], past: Any) -> tuple[torch.Tensor, Any]:
        """Return the logits of the next token, in float32 on the processor, and the new cache."""
        import torch

        new = torch.tensor([ids], device=self._device)
        with torch.inference_mode():
            out = self._model(input_ids=new, past_key_values=past, use_cache=True, logits_to_keep=1)
            return out.logits[0, -1].float().cpu(), out.past_key_values


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return the next token: the likeliest at temperature 0, else one drawn among those that top_k
    and top_p leave.
    """
    import torch

    if sampling.temperature == 0:
        return int(logits.argmax())
    values, tokens = (logits / sampling.temperature).sort(descending=True)
    chances = values.softmax(-1)
    if sampling.top_k:
        chances[sampling.top_k :] = 0
    if sampling.top_p < 1:
        # Kept are those before which less than top_p lies, and always the first.
        chances = chances / chances.sum()
        chances[1:][chances.cumsum(-1)[:-1] >= sampling.top_p] = 0
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])


def _with_logprobs(token: int, logits: torch.Tensor, count: int | None) -> Token:
    if count is None:
        return Token(token)
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(count)
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(token, float(logprobs[token]), likeliest)


def _ends(*configured: int | list[int] | None) -> list[int]:
    """Return every token that ends an answer, as the model's configuration and tokenizer say."""
    listed = [end if isinstance(end, list) else [end] for end in configured]
    return [end for ends in listed for end in ends if end is not None]


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    for name in ("--model", "--device", "--dtype", "--attn-implementation"):
        parser.add_argument(name, required=True)
    for name in ("--threads", "--slots", "--max-length"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    # torch counts the cores that a container's quota leaves unused.
    if threads := options.threads or limited_cores():
        import torch

        torch.set_num_threads(threads)
    serve(
        functools.partial(Loaded, options),
        options.host,
        options.port,
        options.alias,
        sampling=sampling_of(options),
    )


if __name__ == "__main__":
    main()
