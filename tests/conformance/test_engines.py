"""Every registered engine is held to the suite, as far as this machine can run it; one that it
cannot says why.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from weighbridge.conformance import suite
from weighbridge.conformance.report import kept
from weighbridge.conformance.runner import FIRST, check
from weighbridge.core import plugins
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import engine_class
from weighbridge.serving.engines.devices import nvidia_devices

UNBOUND: Mapping[str, str] = {} if nvidia_devices() else {"cpu_omp_threads_bind": "nobind"}
"""Bound to cores, vLLM would take the same one as every other vLLM here, and one process more."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {"vllm": {"enforce_eager": True, **UNBOUND}}
"""Options under which an engine is checked here; none: as it would be tried first on this machine.

vLLM compiles a model that it has not seen for minutes, at each of its starts.
"""


@pytest.mark.slow
@pytest.mark.usefixtures("warm_engines")
@pytest.mark.parametrize("name", plugins.names("engine"))
def test_the_engine_does_all_that_it_claims(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    plugin = engine_class(name)
    engine = plugin(plugin.Args(kind=name))
    report = check(name, workspace, options=OPTIONS.get(name))
    assert report.failed == [], [
        outcome for outcome in report.outcomes if outcome["verdict"] == "failed"
    ]
    environment = report.outcomes[0]
    if environment["verdict"] == "not run":
        pytest.skip(f"{name} cannot be run here: {environment['why']}")
    names = [first for first, _ in FIRST] + [one.name for one in suite.CHECKS]
    assert [outcome["check"] for outcome in report.outcomes] == names
    assert report.count("passed") > len(suite.CHECKS) / 2
    assert str(tmp_path) not in report.model_dump_json()
    assert kept(workspace.settings.home, name, engine.device()) == report
