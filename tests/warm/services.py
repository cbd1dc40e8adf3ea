"""Services, and supervisords with theirs."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from tests.warm.starts import Origin, WarmStarts

COMMANDS = (
    "-m prefect server",
    "-m weighbridge.registry.server",
    "-m weighbridge.deployer.deployer",
    "-P -m weighbridge.serving.bento_launcher",
)
"""How those begin that are started by themselves, and not by a supervisord."""
VARIABLES = {
    # As our commands and services set them, before they import MLflow.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    # Libraries that begin threads when they are imported.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class WarmServices(WarmStarts):
    """Services by themselves, supervisords, and whatever else `origin` is asked for."""

    @property
    def origin(self) -> Origin:
        imports = "from tests.warm import service_copies; service_copies.import_libraries()"
        return Origin(self.folder / "services.sock", self.owner, imports, variables=VARIABLES)

    def __enter__(self) -> Self:
        instead = SimpleNamespace(run=self.run, DEVNULL=subprocess.DEVNULL)
        self._patch.setattr("weighbridge.serving.supervisor.subprocess", instead)
        return super().__enter__()

    def run(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], **_: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Stand for `subprocess.run` where supervisord is started."""
        with self.origin.start(command, subprocess.PIPE, cwd, env) as started:
            assert started.stdout is not None
            text = started.stdout.read()
        return subprocess.CompletedProcess(command, started.wait(), "", text)

    def origin_of(self, command: list[str]) -> Origin | None:
        python, *words = command
        is_one = python == sys.executable and " ".join(words).startswith(COMMANDS)
        return self.origin if is_one else None
