"""A Llama in relax's own building blocks, compiled for this processor. Runs inside the engine's
environment.

Keys and values lie in TVM's paged cache: answers of any length are decoded together, and join and
leave at will.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache

from weighbridge.core.safetensors_header import data_start, read_header
from weighbridge.serving.engines.tvm_kernels import LANES, dense, packed

PAGE = 16
"""Tokens that lie together."""
NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "rms_norm_eps",
)


class UnsupportedModel(Exception):
    """The model is not one of these; the text is for a person."""


class Shape:
    """What a Llama's `config.json` says of it."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        if config.get("architectures") != ["LlamaForCausalLM"]:
            raise UnsupportedModel(
                f"it is a {config.get('architectures')}, "
                "and this engine builds LlamaForCausalLM alone"
            )
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        others = {
            "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default",
            "attention_bias": config.get("attention_bias", False),
            "mlp_bias": config.get("mlp_bias", False),
            "hidden_act": config.get("hidden_act", "silu") != "silu",
            "quantization_config": config.get("quantization_config"),
        }
        if unsupported := [name for name, differs in others.items() if differs]:
            raise UnsupportedModel(
                f"this engine builds plain Llamas, "
                f"and {', '.join(unsupported)} of this one is something else"
            )
        self.hidden, self.inner, self.layers, self.heads, self.vocabulary, self.eps = (
            config[name] for name in NEEDED
        )
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head = config.get("head_dim") or self.hidden // self.heads
        # 10000 where the configuration says nothing: Llama's own.
        self.theta = int(rope.get("rope_theta") or config.get("rope_theta") or 10000)
        self.context = int(config["max_position_embeddings"])
        self.tied = bool(config.get("tie_word_embeddings"))


class Linear(nn.Module):  # type: ignore[misc]  # tvm has no types
    """A matrix product on rows of tokens."""

    def __init__(self, width: int, columns: int) -> None:
        self.width, self.columns = width, columns
        self.weight = nn.Parameter((-(-columns // LANES), width, LANES), "float32")

    def forward(self, x: Any) -> Any:
        out = nn.Tensor.placeholder((x.shape[0], self.columns), "float32")
        return op.tensor_ir_op(dense(self.width, self.columns), "dense", [x, self.weight], out)


class Attention(nn.Module):  # type: ignore[misc]  # tvm has no types
    """All heads of one layer."""

    def __init__(self, shape: Shape, layer: int) -> None:
        self.shape, self.layer = shape, layer
        self.qkv_proj = Linear(shape.hidden, (shape.heads + 2 * shape.kv_heads) * shape.head)
        self.o_proj = Linear(shape.heads * shape.head, shape.hidden)

    def forward(self, x: Any, cache: PagedKVCache, ids: tuple[Any, Any]) -> Any:
        qkv = op.reshape(
            self.qkv_proj(x), (*ids, self.shape.heads + 2 * self.shape.kv_heads, self.shape.head)
        )
        attended = cache.attention_with_fused_qkv(
            self.layer, qkv, self.shape.heads, sm_scale=self.shape.head**-0.5
        )
        return self.o_proj(op.reshape(attended, (x.shape[0], self.shape.heads * self.shape.head)))


class Mlp(nn.Module):  # type: ignore[misc]  # tvm has no types
    """The gated network of one layer."""

    def __init__(self, shape: Shape) -> None:
        self.gate_up_proj = Linear(shape.hidden, 2 * shape.inner)
        self.down_proj = Linear(shape.inner, shape.hidden)

    def forward(self, x: Any) -> Any:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(op.silu(gate) * up)


class Layer(nn.Module):  # type: ignore[misc]  # tvm has no types
    """One layer."""

    def __init__(self, shape: Shape, layer: int) -> None:
        self.self_attn, self.mlp = Attention(shape, layer), Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, -1, shape.eps, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, -1, shape.eps, bias=False)

    def forward(self, x: Any, cache: PagedKVCache, ids: tuple[Any, Any]) -> Any:
        x = x + self.self_attn(self.input_layernorm(x), cache, ids)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):  # type: ignore[misc]  # tvm has no types
    """The whole, from token ids to logits."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList([Layer(shape, layer) for layer in range(shape.layers)])
        self.norm = nn.RMSNorm(shape.hidden, -1, shape.eps, bias=False)
        self.lm_head = Linear(shape.hidden, shape.vocabulary)

    def read(self, ids: Any, cache: PagedKVCache) -> Any:
        """Return logits, one row per token: of a piece of a prompt, or, as `decode`, of the next
        token of every answer.
        """
        batch, length = ids.shape
        x = self.embed_tokens(op.reshape(ids, (batch * length,)))
        for layer in self.layers:
            x = layer(x, cache, (batch, length))
        return self.lm_head(self.norm(x)), cache

    # One computation under two names, since each is compiled for shapes of its own: `spec`.
    decode = read

    def create_cache(self, rows: Any, tokens: Any, chunk: Any, page: Any) -> Any:
        shape = self.shape
        return TIRPagedKVCache(
            attn_kind="mha",
            max_batch_size=rows,
            max_total_seq_len=tokens,
            prefill_chunk_size=chunk,
            page_size=page,
            support_sliding_window=0,
            layer_partition=relax.ShapeExpr([0, shape.layers]),
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            qk_head_dim=shape.head,
            v_head_dim=shape.head,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL,
            rope_scale=1,
            rope_theta=shape.theta,
            rope_scaling={},
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=shape.head,
            enable_disaggregation=False,
            dtype="float32",
            target=processor(),
        )

    def spec(self) -> dict[str, Any]:
        """Return what the compiled functions take."""
        # Packed: the weights come as one argument, and are not compiled in.
        modes = {"param_mode": "packed", "effect_mode": "none"}
        cache = nn.spec.Object(object_type=PagedKVCache)
        return {
            "read": {"ids": nn.spec.Tensor([1, "length"], "int32"), "cache": cache, "$": modes},
            "decode": {"ids": nn.spec.Tensor(["batch", 1], "int32"), "cache": cache, "$": modes},
            "create_cache": {
                "rows": int,
                "tokens": int,
                "chunk": int,
                "page": int,
                "$": {"param_mode": "none", "effect_mode": "none"},
            },
        }


def processor() -> Any:
    """Return the compiler's target: all that this machine's processor can do.

    A product and a sum may become one instruction.
    """
    cpu = tvm.target.codegen.llvm_get_system_cpu()
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "fast-math-contract": True})


def compile_llama(shape: Shape) -> tuple[Any, list[str]]:
    """Return the compiled module, and the names of its parameters in order."""
    model = Llama(shape)
    module, parameters = model.export_tvm(spec=model.spec())[:2]
    return tvm.compile(module, target=processor()), [name for name, _ in parameters]


def weights(folder: Path, shape: Shape, names: list[str]) -> list[Any]:
    """Return the parameters out of safetensors as float32: those that are multiplied together
    joined, and packed.
    """
    tensors = dict(_tensors(folder))
    return [tvm.runtime.tensor(_packed(name, _parameter(tensors, shape, name))) for name in names]


def _packed(name: str, value: Any) -> Any:
    """Return a matrix as the compiled functions multiply by it; the embedding is looked up."""
    return packed(value) if value.ndim == 2 and name != "embed_tokens.weight" else value


def _parameter(tensors: dict[str, Any], shape: Shape, name: str) -> Any:
    joined = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for whole, parts in joined.items():
        if whole in name:
            return np.concatenate([tensors[f"model.{name.replace(whole, part)}"] for part in parts])
    if name == "lm_head.weight":
        return tensors["model.embed_tokens.weight" if shape.tied else name]
    return tensors[f"model.{name}"]


def _tensors(folder: Path) -> Any:
    """Yield name and float32 content of every tensor; numpy itself has no bfloat16."""
    for path in sorted(folder.glob("*.safetensors")):
        raw = memoryview(path.read_bytes())[data_start(path) :]
        for name, tensor in read_header(path).items():
            begin, end = tensor["data_offsets"]
            data = raw[begin:end]
            if tensor["dtype"] == "BF16":
                # A bfloat16 is the upper half of a float32.
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(
                    data, {"F32": np.float32, "F16": np.float16}[tensor["dtype"]]
                ).astype(np.float32)
            assert values.size == math.prod(tensor["shape"])
            yield name, values.reshape(tensor["shape"])
