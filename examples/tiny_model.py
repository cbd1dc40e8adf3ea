"""A tiny model to try things out with: random weights, a real tokenizer and chat template, made
once per machine.
"""

import hashlib
import itertools
import shutil
import tempfile
from pathlib import Path

from examples.support_tickets import corpus, tokenizer, world

CONTEXT = 512
DOCUMENTS = 600


def tiny_model(cache: Path) -> Path:
    """Folder of a two-layer Llama in safetensors, a few hundred thousand parameters, kept under
    `cache` by its recipe.

    Its tokenizer is the demo's, a byte-level BPE with Llama-3's splitting rule, so every engine can
    run it.
    """
    recipe = hashlib.sha256()
    for source in (__file__, corpus.__file__, tokenizer.__file__, world.__file__):
        recipe.update(Path(source).read_bytes())
    final = cache / "models" / f"tiny-{recipe.hexdigest()[:16]}"
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=final.parent))
        try:
            make(scratch)
            _publish(scratch, final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return final


def make(folder: Path, *, seed: int = 0, dtype: str = "float32") -> None:
    """Write a new tiny model into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer.train(itertools.islice(corpus.documents(0, frozenset()), DOCUMENTS), CONTEXT)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        # Heads of 32: the narrowest that every engine has a kernel for.
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        # Loud weights: with the usual quiet ones every answer of a random model is the same.
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def _publish(scratch: Path, final: Path) -> None:
    """Rename into place; another process that was faster has won."""
    scratch.chmod(0o755)
    try:
        scratch.rename(final)
    except OSError:
        if not final.exists():
            raise
