"""MLflow: runs, versions and lineage, aliases, ledger. The one place that knows it.

Importing this costs nothing; MLflow itself is loaded by `Registry.connect`.
"""

from registry.api import Registry, Shown
from registry.entries import Entry
from registry.ledger import Rollout
from registry.measurements import Figures
from registry.places import Place
from registry.runs import Dataset, Run
from registry.versions import Role, Version

__all__ = ["Dataset", "Entry", "Figures", "Place", "Registry", "Role", "Rollout", "Run", "Shown", "Version"]
