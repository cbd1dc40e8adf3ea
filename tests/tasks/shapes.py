"""Models of every shape that bases come in: tiny, with random weights and the tests' tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

TURN = "'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'"
SYSTEM_WITH_DATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nToday is '"
    " + strftime_now('%d %b %Y') + '.<|im_end|>\\n' }}{%- endif %}"
)
GENERATION_TAGS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}"
    "{{- message['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- message['content'] + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
THINKING = (
    f"{{%- for message in messages %}}{{{{- {TURN} }}}}{{%- endfor %}}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
NO_END = (
    "{%- for message in messages %}{{- message['role'] + ': ' + message['content'] + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
)


def _json(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    value = json.loads(path.read_text()) if path.exists() else {}
    value |= changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


def _template(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").write_text(text)


def _tokens_added(folder: Path, *, resized: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"WORD{n}" for n in range(64)])
    if resized:
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _saved_again(folder: Path, *, dtype: str = "float32", shard: str = "1GB") -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=shard)


def _named_templates(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    templates = [
        {"name": "default", "template": text},
        {"name": "tool_use", "template": text.replace("<|im_end|>", "<|im_end|>TOOL")},
    ]
    _json(folder, "tokenizer_config.json", chat_template=templates)


def _end_of_another_name(folder: Path) -> None:
    _json(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    _json(folder, "config.json", eos_token_id=0)
    _json(folder, "generation_config.json", eos_token_id=0, bos_token_id=0)


def _architecture(folder: Path, name: str, **options: Any) -> None:
    """Replace weights and configuration by those of another architecture."""
    import torch
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
    if name == "GPT2":
        sizes, heads = {"n_embd": 64, "n_layer": 2, "n_head": 2}, {"n_positions": 512}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=vocabulary, **sizes, **heads, **special, **options
    )
    torch.manual_seed(0)
    for path in (*folder.glob("*.safetensors"), folder / "generation_config.json"):
        path.unlink(missing_ok=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


SHAPES: Final[dict[str, Callable[[Path], None]]] = {
    "bf16": lambda folder: _saved_again(folder, dtype="bfloat16"),
    "sharded": lambda folder: _saved_again(folder, shard="300KB"),
    "tokens added": lambda folder: _tokens_added(folder, resized=True),
    "tokens added, not resized": lambda folder: _tokens_added(folder, resized=False),
    "pad is eos": lambda folder: _json(folder, "tokenizer_config.json", pad_token="<|im_end|>"),
    "no pad": lambda folder: _json(folder, "tokenizer_config.json", pad_token=...),
    "sampling settings": lambda folder: _json(
        folder, "generation_config.json", do_sample=False, temperature=0.6, max_length=20
    ),
    "no tokenizer_config": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "named templates": _named_templates,
    "generation tags": lambda folder: _template(folder, GENERATION_TAGS),
    "date in the system prompt": lambda folder: _template(
        folder, SYSTEM_WITH_DATE + (folder / "chat_template.jinja").read_text()
    ),
    "thinking": lambda folder: _template(folder, THINKING),
    "no system role": lambda folder: _template(folder, NO_SYSTEM),
    "another end token": _end_of_another_name,
    "a template without end": lambda folder: _template(folder, NO_END),
    "ends that are no tokens": lambda folder: _json(
        folder, "generation_config.json", eos_token_id=["</s>", {}, True, 1e99]
    ),
    "pad beyond the vocabulary": lambda folder: _json(folder, "config.json", pad_token_id=99_999),
    "quantized for another library": lambda folder: _json(
        folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}
    ),
    **{
        name: lambda folder, name=name, options=options: _architecture(folder, name, **options)  # type: ignore[misc]
        for name, options in {
            "Llama": {"tie_word_embeddings": False},
            "Qwen2": {},
            "Qwen3": {"head_dim": 32},
            "Mistral": {"sliding_window": 64},
            "Phi3": {},
            "Gemma2": {"head_dim": 32},
            "Gemma3Text": {"head_dim": 32},
            "Olmo2": {},
            "Granite": {},
            "GPT2": {},
        }.items()
    },
}


def make(name: str, base: Path, to: Path) -> Path:
    """Return a copy of a model, brought into a shape."""
    shutil.copytree(base, to)
    SHAPES[name](to)
    return to
