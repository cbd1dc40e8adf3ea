"""Servers of engines on a processor: each origin is of one kind."""

from collections.abc import Mapping
from pathlib import Path

from tests.warm.starts import Origin, WarmStarts, importing
from weighbridge.serving.engines.vllm import FORKED

IMPORTS: Mapping[str, str] = {
    "vllm": FORKED + importing("vllm.entrypoints.launchers.api_server.entry"),
    "transformers_server.py": importing(
        "torch",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
        "aiohttp.web",
    ),
    "tvm_server.py": importing("tvm.relax.frontend.nn.llm.kv_cache", "tokenizers", "aiohttp.web"),
}
"""What a server imports in any case: by its script's name, vLLM's by its own."""


class WarmEngines(WarmStarts):
    """Servers; vLLM is whatever its Python runs after `FORKED`, as it does servers of one process.

    A guarded one begins as its guard, which goes on as the server.
    """

    def origin_of(self, command: list[str]) -> Origin | None:
        is_vllm = any(word.startswith(FORKED) for word in command)
        kind = "vllm" if is_vllm else Path(command[2]).name if command[1:2] == ["-I"] else ""
        if kind not in IMPORTS:
            return None
        address = self.folder / f"{kind}.sock"
        return Origin(address, self.owner, IMPORTS[kind], (command[0], "-I"))
