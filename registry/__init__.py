"""MLflow: runs, versions and lineage, aliases, ledger. The one place that knows it.

Importing this costs nothing; MLflow itself is loaded by `Registry.connect`.
"""

from weighbridge.registry.api import Registry, VersionDetails
from weighbridge.registry.bindings import Binding
from weighbridge.registry.ledger import RolloutRecord
from weighbridge.registry.ledger_entries import LedgerEntry
from weighbridge.registry.measurements import MeasuredFigures
from weighbridge.registry.runs import Dataset, MlflowRun
from weighbridge.registry.versions import Role, Version

__all__ = [
    "Binding",
    "Dataset",
    "LedgerEntry",
    "MeasuredFigures",
    "MlflowRun",
    "Registry",
    "Role",
    "RolloutRecord",
    "Version",
    "VersionDetails",
]
