"""What training costs: the trainer that stage finetune takes for plain rows, and TRL's SFTTrainer.

Each side trains the same rows of random tokens from the same random weights, in a process of its
own, on one thread. CPU time and not the clock is counted, so that a busy machine does not matter.

Usage: python -m benchmarks.training [--shape smollm2|demo] [--steps 3] [--batch 4] [--prompt 100]
[--answer 20]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    # SmolLM2-135M's.
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    # The demo's.
    "demo": {
        "vocab_size": 2137,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
}
SIDES = ("plain", "sft")


def make_model(shape: str, folder: Path) -> None:
    """Write a model of random weights, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from examples.tiny_model import tiny_model
    from weighbridge.core.settings import Settings

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model(Settings().cache)).save_pretrained(folder)


def train(side: str, model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Train, and return losses and costs of this process."""
    import random

    import torch

    from weighbridge.tasks import hf_models, trainers
    from weighbridge.tasks.encoding import Encoded
    from weighbridge.tasks.finetune_args import FinetuneArgs

    torch.set_num_threads(1)
    draw = random.Random(0)
    rows = [
        Encoded(
            [draw.randrange(1000) for _ in range(options.prompt)],
            [draw.randrange(1000) for _ in range(options.answer)],
        )
        for _ in range(options.batch * options.steps)
    ]
    args = FinetuneArgs(
        per_device_train_batch_size=options.batch, max_steps=options.steps, save_steps=1000
    )
    with tempfile.TemporaryDirectory() as folder, hf_models.quiet():
        trainers._needs_sft = lambda *unused: side == "sft"
        trainer = trainers.make_trainer(model, rows, args, Path(folder))
        before, started = time.process_time(), time.perf_counter()
        trainer.train()
        cpu, seconds = time.process_time() - before, time.perf_counter() - started
    tokens = len(rows) * (options.prompt + options.answer)
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "tokens_per_cpu_second": round(tokens / cpu, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--answer", type=int, default=20)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train(options.side, options.model, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.shape, Path(folder))
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:]]
            command += ["--side", side, "--model", folder]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(side, said.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
