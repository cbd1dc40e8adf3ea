"""A decoder of onnxruntime-genai's builder behind OpenAI's API. Runs inside the engine's
environment, by path.
"""

import argparse
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]

from weighbridge.core.machine import cores
from weighbridge.serving.engines.onnx_batch import OnnxDecoder, unknown_inputs
from weighbridge.serving.shim.batching import Batcher
from weighbridge.serving.shim.hf_tokenizer import HfTokenizer
from weighbridge.serving.shim.server import add_options, sampling_of, serve


class OnnxModel(HfTokenizer):
    """The tokenizer and the batched decoder of one artifact."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.model / "tokenizer")
        config = json.loads((args.model / "genai_config.json").read_text())
        self.context = min(args.context_length, config["model"]["context_length"])
        self.slots = args.max_batch_size
        head_size = config["model"]["decoder"]["head_size"]
        decoder = OnnxDecoder(
            _session(args, config), slots=self.slots, context=self.context, head_size=head_size
        )
        batcher = Batcher(decoder, slots=self.slots, chunk=args.chunk_size, ends=self.ends)
        self.generate, self.logprobs = batcher.generate, batcher.logprobs


def _session(args: argparse.Namespace, config: dict[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.intra_op_num_threads or max(1, cores() // 2)
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", str(int(args.allow_spinning))
    )
    weights = args.model / config["model"]["decoder"]["filename"]
    session = onnxruntime.InferenceSession(
        str(weights), options, providers=["CPUExecutionProvider"]
    )
    if unknown := unknown_inputs(session):
        sys.exit(
            f"the graph wants {', '.join(unknown)}, which only onnxruntime-genai itself can give"
        )
    if not config["search"]["past_present_share_buffer"]:
        sys.exit(
            "the graph does not extend its cache in place: "
            "make it again with this version's optimizer"
        )
    return session


def options(model: Path, values: Mapping[str, Any]) -> argparse.Namespace:
    """Return options as the command line gives them, for who loads the model without one."""
    return argparse.Namespace(model=model, **values)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--model", type=Path, required=True)
    for name in ("--context-length", "--max-batch-size", "--chunk-size"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--intra-op-num-threads", type=int)
    parser.add_argument("--allow-spinning", action="store_true")
    args = parser.parse_args()
    serve(lambda: OnnxModel(args), args.host, args.port, args.alias, sampling=sampling_of(args))


if __name__ == "__main__":
    main()
