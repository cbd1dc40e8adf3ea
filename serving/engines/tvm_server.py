"""A Llama that TVM compiles for this processor, behind OpenAI's API. Runs inside the engine's
environment, by path.
"""

import argparse
import logging
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]

import numpy as np
import tvm
from tvm import relax
from tvm.runtime import ShapeTuple

from weighbridge.serving.engines.tvm_llama import (
    PAGE,
    Shape,
    UnsupportedModel,
    compile_llama,
    weights,
)
from weighbridge.serving.shim.batching import Batcher
from weighbridge.serving.shim.hf_tokenizer import HfTokenizer
from weighbridge.serving.shim.server import add_options, sampling_of, serve

# By its full name: run as a program, it is called `__main__`.
logger = logging.getLogger("weighbridge.serving.engines.tvm_server")


class TvmDecoder:
    """The compiled model with TVM's paged cache."""

    def __init__(self, folder: Path, shape: Shape, *, slots: int, context: int, chunk: int) -> None:
        executable, names = compile_llama(shape)
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._weights = weights(folder, shape, names)
        # Every answer fills its last page in part.
        sizes = (slots, slots * (context + PAGE), chunk, PAGE)
        self._cache = self._machine["create_cache"](*(ShapeTuple([size]) for size in sizes))

    def join(self, key: int) -> None:
        """Begin a sequence of its own in the cache."""
        self._call("add_sequence", key)

    def leave(self, key: int) -> None:
        """Free its pages."""
        self._call("remove_sequence", key)

    def read(self, key: int, tokens: Sequence[int]) -> Any:
        """Return the logits after each of the tokens."""
        return self._run("read", [key], [list(tokens)])

    def step(self, keys: Sequence[int], tokens: Sequence[int]) -> Any:
        """Return the logits after one more token of each."""
        return self._run("decode", keys, [[token] for token in tokens])

    def _run(self, name: str, keys: Sequence[int], ids: list[list[int]]) -> Any:
        self._call("begin_forward", ShapeTuple(list(keys)), ShapeTuple([len(row) for row in ids]))
        tensor = tvm.runtime.tensor(np.array(ids, np.int32))
        logits = self._machine[name](tensor, self._cache, self._weights)[0].numpy()
        self._call("end_forward")
        return logits

    def _call(self, name: str, *arguments: Any) -> None:
        tvm.get_global_func(f"vm.builtin.kv_state_{name}")(self._cache, *arguments)


class TvmModel(HfTokenizer):
    """The tokenizer and the compiled decoder of one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.model)
        try:
            shape = Shape(args.model)
        except UnsupportedModel as exc:
            sys.exit(f"tvm cannot serve this model: {exc}")
        self.context, self.slots = min(args.context_length, shape.context), args.max_batch_size
        started = time.monotonic()
        decoder = TvmDecoder(
            args.model, shape, slots=self.slots, context=self.context, chunk=args.chunk_size
        )
        logger.info("compiled and loaded in %.1f s", time.monotonic() - started)
        batcher = Batcher(decoder, slots=self.slots, chunk=args.chunk_size, ends=self.ends)
        self.generate, self.logprobs = batcher.generate, batcher.logprobs


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--model", type=Path, required=True)
    for name in ("--context-length", "--max-batch-size", "--chunk-size"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    serve(lambda: TvmModel(args), args.host, args.port, args.alias, sampling=sampling_of(args))


if __name__ == "__main__":
    main()
