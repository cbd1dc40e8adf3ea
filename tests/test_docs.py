"""What a command writes into documents is what was recorded, and people name what there is."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from weighbridge.conformance.matrix import MatrixEntry
from weighbridge.conformance.runner import document
from weighbridge.core import plugins
from weighbridge.serving.engines.base import engine_class

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it tells of names that are gone
)
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}


def entries() -> list[MatrixEntry]:
    return [
        MatrixEntry.model_validate(entry)
        for entry in json.loads((DOCS / "engines.json").read_text())
    ]


def test_the_matrix_of_engines_is_the_renderers_of_the_recorded_results() -> None:
    assert (DOCS / "engines.md").read_text() == document(entries())


def test_every_engine_and_device_has_a_column() -> None:
    locks = {
        (name, device) for name in plugins.BUILT_IN["engine"] for device in engine_class(name).locks
    }
    assert {(entry.engine, entry.device) for entry in entries()} >= locks


def test_what_is_published_names_no_folder_of_a_machine() -> None:
    text = (DOCS / "engines.json").read_text()
    assert not [
        folder
        for folder in ("/tmp/", "/home/", "/var/", "/opt/", f"{Path.home()}/")
        if folder in text
    ]


def named_paths(text: str) -> Iterator[str]:
    """Words in backticks that look like paths of the tree: `rollout/outbox.py`, `serving/`; not
    patterns such as `tasks/sources/NAME.py`.
    """
    for word in re.findall(r"`([\w./-]+/[\w./-]*)`", text):
        if word.partition("/")[0] in FOLDERS and "NAME" not in word:
            yield word


def named_modules(text: str) -> Iterator[str]:
    """Dotted names that begin like a module of ours: `weighbridge.rollout.outbox.Outbox`."""
    packages = {path.name for path in (ROOT / "src/weighbridge").iterdir()}
    for name in re.findall(r"\bweighbridge\.\w+(?:\.\w+)*", text):
        # The entry-point group is named like a module and is none.
        if name.split(".")[1] in packages and name != plugins.GROUP:
            yield name


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    package, _, last = name.rpartition(".")
    return hasattr(import_module(package), last) or find_spec(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_link_and_module_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in named_paths(text) if not (ROOT / path).exists()] == []
    assert [name for name in named_modules(text) if not resolves(name)] == []
