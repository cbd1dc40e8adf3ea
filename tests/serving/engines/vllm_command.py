"""The command lines of vLLM that tests look at."""

from pathlib import Path

from weighbridge.serving.engines.vllm import Vllm, VllmArgs


def words(args: VllmArgs) -> list[str]:
    return Vllm(args).command(Path("/models/one"), "127.0.0.1", 8000, Path("/env/bin/python"))


def own(args: VllmArgs) -> list[str]:
    """What the guard starts."""
    command = words(args)
    return command[command.index("--") + 1 :]
