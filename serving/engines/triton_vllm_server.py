"""Write the repository of a model on Triton's vLLM backend, then be Triton's own OpenAI server over
it.

Called as `triton_vllm_server.py FRONTEND MODEL HOST PORT OPTIONS`; the repository lies in the
working directory, which is the engine's own and goes when the engine does.
"""

import json
import os
import sys
import types
from pathlib import Path

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]

from weighbridge.serving.engines.triton_repository import vllm_backend

PYTHON = "python3"
"""The container's own: its packages are what the frontend imports."""


def main(frontend: str, model: str, host: str, port: str, options: str) -> None:
    """Write the repository, and become the frontend."""
    repository = vllm_backend(Path("models").absolute(), Path(model), json.loads(options))
    arguments = ["--model-repository", str(repository), "--tokenizer", model, "--backend", "vllm"]
    # In this process's place, so that a SIGTERM reaches it.
    os.execvp(PYTHON, [PYTHON, frontend, *arguments, "--host", host, "--openai-port", port])


if __name__ == "__main__":
    main(*sys.argv[1:])
