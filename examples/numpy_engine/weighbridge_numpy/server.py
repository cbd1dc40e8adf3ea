"""Llama models in NumPy, behind Weighbridge's OpenAI server. Runs in its own environment, isolated
and by path.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.numpy import load_file
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from weighbridge.plugins.shim import Sampling, TokenStream

Array = np.ndarray[Any, np.dtype[np.float32]]
Cache = list[tuple[Array, Array]]
"""Keys and values by layer."""


class Llama:
    """The network: token ids in, logits out."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        if self.config["model_type"] != "llama":
            sys.exit(
                f"this engine runs Llama models, and the model is a {self.config['model_type']}"
            )
        self._weights: dict[str, Array] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._weights |= {
                name: array.astype(np.float32) for name, array in load_file(path).items()
            }
        self._heads = int(self.config["num_attention_heads"])
        self._shared = self._heads // int(self.config.get("num_key_value_heads") or self._heads)
        rope = self.config.get("rope_parameters") or {}
        base = float(rope.get("rope_theta") or self.config.get("rope_theta") or 10_000.0)
        width = int(self.config.get("head_dim") or self.config["hidden_size"] // self._heads)
        self._turns = base ** (-np.arange(0, width, 2, dtype=np.float32) / width)

    def __call__(self, ids: Sequence[int], cache: Cache) -> Array:
        """Return the logits of every token; `cache` holds what came before, and grows."""
        layers = int(self.config["num_hidden_layers"])
        past = cache[0][0].shape[1] if cache else 0
        hidden: Array = self._weights["model.embed_tokens.weight"][list(ids)]
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            hidden = hidden + self._attend(
                self._norm(hidden, f"{prefix}.input_layernorm"), prefix, past, layer, cache
            )
            hidden = hidden + self._feed(
                self._norm(hidden, f"{prefix}.post_attention_layernorm"), prefix
            )
        head = self._weights.get("lm_head.weight", self._weights["model.embed_tokens.weight"])
        return np.asarray(self._norm(hidden, "model.norm") @ head.T, dtype=np.float32)

    def _norm(self, hidden: Array, name: str) -> Array:
        scale = np.sqrt((hidden**2).mean(-1, keepdims=True) + float(self.config["rms_norm_eps"]))
        return np.asarray(hidden / scale * self._weights[f"{name}.weight"])

    def _attend(self, hidden: Array, prefix: str, past: int, layer: int, cache: Cache) -> Array:
        query, key, value = (
            self._split(hidden @ self._weights[f"{prefix}.self_attn.{name}_proj.weight"].T)
            for name in "qkv"
        )
        places = np.arange(past, past + len(hidden), dtype=np.float32)
        query, key = self._turn(query, places), self._turn(key, places)
        if layer < len(cache):
            key, value = (
                np.concatenate(pair, axis=1)
                for pair in zip(cache[layer], (key, value), strict=True)
            )
            cache[layer] = key, value
        else:
            cache.append((key, value))
        key, value = (np.repeat(array, self._shared, axis=0) for array in (key, value))
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        later = np.arange(key.shape[1])[None, :] > places[:, None]
        mixed = softmax(np.where(later, -np.inf, scores)) @ value
        joined = mixed.transpose(1, 0, 2).reshape(len(hidden), -1)
        return np.asarray(joined @ self._weights[f"{prefix}.self_attn.o_proj.weight"].T)

    def _split(self, rows: Array) -> Array:
        return rows.reshape(len(rows), -1, len(self._turns) * 2).transpose(1, 0, 2)

    def _turn(self, rows: Array, places: Array) -> Array:
        """Apply the rotary position embedding, halves against halves."""
        angles = places[:, None] * self._turns
        cos, sin = np.cos(angles), np.sin(angles)
        left, right = np.split(rows, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    def _feed(self, hidden: Array, prefix: str) -> Array:
        gate, up, down = (
            self._weights[f"{prefix}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")
        )
        opened = hidden @ gate
        return np.asarray((opened / (1 + np.exp(-opened)) * (hidden @ up)) @ down)


class Loaded:
    """The network with its tokenizer and template: what Weighbridge's server asks for."""

    def __init__(self, folder: Path, slots: int) -> None:
        self._llama = Llama(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # As transformers renders templates.
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        jinja.globals["raise_exception"] = refuse
        self._template = jinja.from_string((folder / "chat_template.jinja").read_text())
        end = self._llama.config["eos_token_id"]
        self.ends = frozenset(end if isinstance(end, list) else [end])
        self.context = int(self._llama.config["max_position_embeddings"])
        self.slots = slots

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True)
        except TemplateError as exc:
            raise ValueError(exc.message) from exc
        return self.tokenize(text, special=False)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        from weighbridge.plugins.shim import Token

        chance = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**63)
        cache: Cache = []
        ids = list(prompt)
        for _ in range(sampling.max_tokens):
            logits = self._llama(ids, cache)[-1]
            token = draw(logits, sampling, chance)
            if sampling.logprobs is None:
                yield Token(token)
            else:
                known = np.log(softmax(logits))
                top = np.argsort(-known)[: sampling.logprobs]
                yield Token(
                    token,
                    float(known[token]),
                    tuple((int(other), float(known[other])) for other in top),
                )
            if token in self.ends:
                return
            ids = [token]

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        logits = self._llama([*prompt, *completion], [])[len(prompt) - 1 : -1]
        known = np.log(softmax(logits))
        return [float(row[token]) for row, token in zip(known, completion, strict=True)]


def draw(logits: Array, sampling: Sampling, chance: np.random.Generator) -> int:
    """Return the next token: the likeliest at temperature 0, else one drawn among those that top_k
    and top_p leave.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits)[: sampling.top_k or None]
    chances = softmax(logits[order].astype(np.float64) / sampling.temperature)
    before = np.concatenate([[0.0], np.cumsum(chances)[:-1]])
    chances = np.where((before < sampling.top_p) | (before == 0), chances, 0)
    return int(order[chance.choice(len(order), p=chances / chances.sum())])


def softmax(rows: Any) -> Any:
    """Return the probabilities that logits stand for, along the last axis."""
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def refuse(message: str) -> None:
    """Refuse messages; templates call it where these make no sense to them."""
    raise TemplateError(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weighbridge", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=1)
    known, _ = parser.parse_known_args()
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [known.weighbridge]
    from weighbridge.plugins.shim import add_options, serve

    add_options(parser)
    options = parser.parse_args()
    serve(
        functools.partial(Loaded, options.model, options.slots),
        options.host,
        options.port,
        options.alias,
    )


if __name__ == "__main__":
    main()
