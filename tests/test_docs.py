"""Documents that a command writes are what that command makes of what was recorded."""

import json
from pathlib import Path

from weighbridge.conformance.matrix import MatrixEntry
from weighbridge.conformance.runner import document
from weighbridge.core import plugins

DOCS = Path(__file__).resolve().parent.parent / "docs"


def entries() -> list[MatrixEntry]:
    return [
        MatrixEntry.model_validate(found)
        for found in json.loads((DOCS / "engines.json").read_text())
    ]


def test_the_matrix_of_engines_is_the_renderers_of_the_recorded_results() -> None:
    assert (DOCS / "engines.md").read_text() == document(entries())


def test_every_engine_and_device_has_a_column() -> None:
    locks = {
        (name, device)
        for name in plugins.BUILT_IN["engine"]
        for device in plugins.load("engine", name).locks
    }
    assert {(entry.engine, entry.device) for entry in entries()} >= locks


def test_what_is_published_names_no_folder_of_a_machine() -> None:
    text = (DOCS / "engines.json").read_text()
    assert not [
        place for place in ("/tmp/", "/home/", "/var/", "/opt/", f"{Path.home()}/") if place in text
    ]
