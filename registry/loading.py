"""Importing MLflow: later than everything else, and without what it can do without."""

import logging
import os
from typing import TYPE_CHECKING

from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.registry import mlflow_internals

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def load_mlflow(*, fast: bool = True) -> "type[MlflowClient]":
    """Import MLflow, lean where that goes, and return its client.

    Args:
        fast: Leave out what is optional to it; what `Settings.fast_start` says.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its migrations tell every step at INFO, to a handler of their own on stderr.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Commands show progress of their own.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # With a server it prints the address of each run that ends, on stdout: among a command's JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    client = _import(fast)
    # It logs, with its traceback, every database error that it then raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return client


def _import(fast: bool) -> "type[MlflowClient]":
    if fast:
        try:
            return mlflow_internals.import_lean()
        except NAME_IS_GONE as exc:
            warn_name_is_gone("mlflow", exc)
    from mlflow.tracking import MlflowClient

    client: type[MlflowClient] = MlflowClient
    return client
