"""Adapters for tests: random, loud enough to change what a tiny model says; and what transformers
says with them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def make(model: Path, folder: Path, seed: int = 0) -> Path:
    """Write a PEFT adapter of the model into the new folder `folder`, and return that."""
    import torch
    from peft import LoraConfig, get_peft_model

    from weighbridge.tasks.hf_models import load_model, quiet

    torch.manual_seed(seed)
    with quiet():
        config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(load_model(model, to="cpu"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def reference(model: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """Return the model in transformers, with an adapter if one is given, and its tokenizer."""
    from peft import PeftModel

    from weighbridge.tasks.encoding import load_tokenizer
    from weighbridge.tasks.hf_models import load_model, quiet

    with quiet():
        weights: Any = load_model(model, to="cpu")
        weights = PeftModel.from_pretrained(weights, str(adapter)) if adapter else weights
    return weights.eval(), load_tokenizer(model)


def greedy(
    model: Path, chat: Sequence[Mapping[str, str]], adapter: Path | None = None, tokens: int = 8
) -> str:
    """Return what transformers answers to the chat, with the most likely token each time."""
    import torch

    weights, tokenizer = reference(model, adapter)
    ids = torch.tensor(
        [tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)]
    )
    with torch.no_grad():
        answer = weights.generate(ids, max_new_tokens=tokens, do_sample=False)[0][ids.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))
