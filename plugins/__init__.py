"""Weighbridge's public interface for plugins of other packages::

    from weighbridge.plugins import Capabilities, Engine, EngineArgs, Format

A plugin is a class derived from `Engine` or `Target`, or one that offers what `Source`, `Optimizer`
or `Metric` say. A package names it in the entry-point group `weighbridge.plugins.v1`::

    [project.entry-points."weighbridge.plugins.v1"]
    "engine.my_engine" = "my_package.engine:MyEngine"

What is public, and how it may change (semantic versioning, by Weighbridge's own version):

- Public are the names in `__all__` of this module and of `weighbridge.plugins.shim`: their
  parameters, attributes, fields and documented errors. Every other module of Weighbridge may change
  in any release.
- A minor release adds: names, and methods and fields that have defaults. A plugin that worked goes
  on working.
- Only a major release takes away or changes what is here. The entry-point group then gets a new
  number, so that a plugin made for the old interface is not loaded by the new one.
- Until version 1.0 a minor release may do what a major one may do afterwards; CHANGELOG.md says so.

Every name is imported when it is first asked for: a Bento holds this module and what an engine
needs, and neither targets nor stages.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from weighbridge.conformance.base import CheckFailed
    from weighbridge.conformance.metric_checks import check_metric
    from weighbridge.conformance.target_checks import check_target
    from weighbridge.core.artifact import Artifact, File, Format
    from weighbridge.core.errors import BadInput, GateFailed, Unavailable, WeighbridgeError
    from weighbridge.core.paths import PACKAGE
    from weighbridge.core.remote_file import RemoteFile
    from weighbridge.core.workspace import Workspace
    from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs
    from weighbridge.serving.engines.command_line import flags, guarded, variations
    from weighbridge.serving.engines.shim_engine import ShimEngine
    from weighbridge.serving.gateway.models import FinishedRequest
    from weighbridge.serving.targets.base import (
        Liveness,
        NeverRan,
        Release,
        Revision,
        Serving,
        Share,
        Target,
        TargetArgs,
        Traffic,
    )
    from weighbridge.serving.targets.records import (
        Change,
        Document,
        LockLost,
        TargetLocked,
        TargetRecords,
    )
    from weighbridge.serving.targets.shared_records import (
        Lease,
        OutOfDate,
        SharedPlace,
        SharedRecords,
    )
    from weighbridge.tasks.metrics.base import Metric, MetricArgs, Question, Score
    from weighbridge.tasks.metrics.intervals import mean_score, with_interval
    from weighbridge.tasks.optimizers.base import Optimizer, OptimizerArgs
    from weighbridge.tasks.sources.base import Digesting, Listing, Source, SourceArgs

__all__ = [
    "PACKAGE",
    "Artifact",
    "BadInput",
    "Capabilities",
    "Change",
    "CheckFailed",
    "Digesting",
    "Document",
    "Engine",
    "EngineArgs",
    "File",
    "FinishedRequest",
    "Format",
    "GateFailed",
    "Lease",
    "Listing",
    "Liveness",
    "LockLost",
    "Metric",
    "MetricArgs",
    "NeverRan",
    "Optimizer",
    "OptimizerArgs",
    "OutOfDate",
    "Question",
    "Release",
    "RemoteFile",
    "Revision",
    "Score",
    "Serving",
    "Share",
    "SharedPlace",
    "SharedRecords",
    "ShimEngine",
    "Source",
    "SourceArgs",
    "Target",
    "TargetArgs",
    "TargetLocked",
    "TargetRecords",
    "Traffic",
    "Unavailable",
    "WeighbridgeError",
    "Workspace",
    "check_metric",
    "check_target",
    "flags",
    "guarded",
    "mean_score",
    "variations",
    "with_interval",
]

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "conformance.base": ("CheckFailed",),
    "conformance.metric_checks": ("check_metric",),
    "conformance.target_checks": ("check_target",),
    "core.artifact": ("Artifact", "File", "Format"),
    "core.errors": ("BadInput", "GateFailed", "Unavailable", "WeighbridgeError"),
    "core.paths": ("PACKAGE",),
    "core.remote_file": ("RemoteFile",),
    "core.workspace": ("Workspace",),
    "serving.engines.base": ("Capabilities", "Engine", "EngineArgs"),
    "serving.engines.command_line": ("flags", "guarded", "variations"),
    "serving.engines.shim_engine": ("ShimEngine",),
    "serving.gateway.models": ("FinishedRequest",),
    "serving.targets.base": (
        "Liveness",
        "NeverRan",
        "Release",
        "Revision",
        "Serving",
        "Share",
        "Target",
        "TargetArgs",
        "Traffic",
    ),
    "serving.targets.records": ("Change", "Document", "LockLost", "TargetLocked", "TargetRecords"),
    "serving.targets.shared_records": ("Lease", "OutOfDate", "SharedPlace", "SharedRecords"),
    "tasks.metrics.base": ("Metric", "MetricArgs", "Question", "Score"),
    "tasks.metrics.intervals": ("mean_score", "with_interval"),
    "tasks.optimizers.base": ("Optimizer", "OptimizerArgs"),
    "tasks.sources.base": ("Digesting", "Listing", "Source", "SourceArgs"),
}
_MODULES: Final = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'weighbridge.plugins' has no attribute '{name}'")
    return getattr(importlib.import_module(f"weighbridge.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
