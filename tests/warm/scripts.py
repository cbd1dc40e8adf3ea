"""Our scripts for other environments: each origin is of one script and its Python."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.warm.starts import Origin, WarmStarts, importing
from weighbridge.core.paths import PACKAGE
from weighbridge.core.settings import Settings

LIBRARIES: Mapping[str, Sequence[str]] = {
    "bento_build.py": (
        "bentoml._internal.bento.bento",
        "_bentoml_sdk",
        "aiohttp",
        "pydantic_settings",
    ),
    "convert.py": ("torch", "transformers.utils.import_utils"),
    "quantize.py": ("llmcompressor", "transformers.models.auto.modeling_auto", "datasets"),
    "build.py": ("torch", "transformers.models.auto.modeling_auto", "onnx_ir"),
}
"""What a script imports in any case, by its name."""


class WarmScripts(WarmStarts):
    """Scripts that a Python of the machine's environments runs."""

    def origin_of(self, command: list[str]) -> Origin | None:
        python = command[0]
        script = next((Path(word) for word in command[1:3] if word != "-P"), Path())
        is_ours = script.name in LIBRARIES and PACKAGE in script.parents and script.exists()
        # What a test has made in its own folder is nobody else's.
        if not is_ours or not Path(python).is_relative_to(Settings().cache):
            return None
        kind = hashlib.sha256(f"{python} {script}".encode()).hexdigest()[:8]
        address = self.folder / f"{script.stem}-{kind}.sock"
        return Origin(address, self.owner, importing(*LIBRARIES[script.name]), (python, "-P"))
