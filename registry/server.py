"""MLflow's server as one process, where MLflow's command keeps another that waits for it.

Usage: ``python -m weighbridge.registry.server OPTIONS OF mlflow server``
"""

import sys

from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.core.settings import Settings
from weighbridge.registry import mlflow_internals


def main(arguments: list[str]) -> None:
    """Run the server until a signal ends it."""
    # Before MLflow's command, which imports the server without what turns its guard on.
    if Settings().fast_start:
        try:
            mlflow_internals.replace_command_by_server()
        except NAME_IS_GONE as exc:
            warn_name_is_gone("mlflow", exc)
    from mlflow.cli import cli

    cli(["server", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
