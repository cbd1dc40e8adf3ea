"""MLflow: runs, versions and lineage, aliases, ledger. The one place that knows it.

Importing this costs nothing; MLflow itself is loaded by `Registry.connect`.
"""

from weighbridge.registry.api import Registry, Shown
from weighbridge.registry.bindings import Place
from weighbridge.registry.ledger import Rollout
from weighbridge.registry.ledger_entries import Entry
from weighbridge.registry.measurements import Figures
from weighbridge.registry.runs import Dataset, Run
from weighbridge.registry.versions import Role, Version

__all__ = ["Dataset", "Entry", "Figures", "Place", "Registry", "Role", "Rollout", "Run", "Shown", "Version"]
