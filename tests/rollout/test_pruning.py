"""Old weights: what is needed stays and says why; the rest goes from wherever it is linked."""

import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from tests.tasks.made import measured
from weighbridge.cli.prune import prune
from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry, Version
from weighbridge.registry.versions import REMOVED
from weighbridge.rollout import pruning
from weighbridge.rollout.state import TargetState, home_records, state_document
from weighbridge.serving.targets.base import Release, Revision
from weighbridge.serving.targets.records import STATE

SIZE = 64 << 10


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry.connect(workspace.settings)


def made(workspace: Workspace, name: str, format: Format = "safetensors") -> Artifact:
    with workspace.store.scratch() as scratch:
        (scratch / "files").mkdir()
        (scratch / "files" / "weights").write_bytes(name.encode().ljust(SIZE, b"."))
        return workspace.store.add(scratch / "files", format)


def released(registry: Registry, workspace: Workspace, number: int) -> dict[str, Version]:
    """The versions of one release: of one base, with a fine-tune and two variants of its own."""
    versions: dict[str, Version] = {}
    with registry.release("demo", number, params={}, tags={}) as run:
        for role, name, format, parent in (
            ("base", "base", "safetensors", ""),
            ("adapter", f"adapter {number}", "peft", "base"),
            ("merged", f"merged {number}", "safetensors", "adapter"),
            ("variant", f"small {number}", "gguf", "merged"),
            ("variant", f"large {number}", "gguf", "merged"),
        ):
            version = registry.register(
                "demo",
                role,  # type: ignore[arg-type]
                made(workspace, name, format),  # type: ignore[arg-type]
                run=run,
                parent=versions.get(parent),
                label=name.partition(" ")[0],
            )
            versions[version.label] = version
        for label in ("small", "large"):
            answers = made(workspace, f"answers {label} {number}", "jsonl")
            measurement = measured(label).model_copy(update={"predictions": answers})
            registry.record_measurement(
                versions[label],
                f"llama_cpp/{label}",
                run=run,
                document=measurement.model_dump_json(),
                figures=[],
            )
    return versions


def taken(home: Path) -> int:
    """Bytes of what was made; a file that is linked several times counts once."""
    files = [path.stat() for path in home.rglob("*") if path.is_file()]
    return SIZE * len({status.st_ino for status in files if status.st_size == SIZE})


def unneeded(registry: Registry, workspace: Workspace) -> list[pruning.Holding]:
    return [one for one in pruning.holdings(registry, workspace) if not one.why]


def told(*options: str) -> dict[str, Any]:
    """What the command says."""
    done = CliRunner().invoke(prune, [*options, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def whats(holdings: list[pruning.Holding]) -> set[str]:
    return {one.version.label if one.version else one.what for one in holdings}


def test_of_older_releases_only_what_has_an_alias_serves_or_served_stays(
    registry: Registry, workspace: Workspace
) -> None:
    first, second = (released(registry, workspace, number) for number in (1, 2))
    registry.promote(second["small"])
    old = first["large"]
    release = Release(name="demo", version=old.version, bento="demo:1", digest="sha256:0")
    state: TargetState[Revision] = TargetState(previous_releases=(release,))
    records = home_records("shop", workspace.settings.home)
    records.change(STATE, lambda _: state_document(state))
    why = {
        one.version.version: one.why for one in pruning.holdings(registry, workspace) if one.version
    }
    assert why[second["small"].version] == "alias champion"
    assert why[second["large"].version] == "of the last release"
    assert why[first["base"].version] == "of the last release"
    assert why[old.version] == "a rollback of shop goes back to it"
    assert whats(unneeded(registry, workspace)) == {"adapter", "merged", "small"}


def test_what_nothing_needs_goes_from_every_place_and_frees_what_was_said(
    registry: Registry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Environments are pruned as well, and those of this machine are none of this test's.
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pruning, "IN_USE_SECONDS", -60.0)
    first, second = (released(registry, workspace, number) for number in (1, 2))
    registry.promote(second["small"])
    before = taken(workspace.settings.home)
    said = told()["freed"]
    assert taken(workspace.settings.home) == before, "nothing goes without --yes"
    assert told("--yes")["freed"] == said
    # Adapter, merged weights and both variants of the first release, and the answers to them.
    assert before - taken(workspace.settings.home) == 6 * SIZE
    manifests = 6 * 4096
    assert 6 * SIZE <= said <= 6 * SIZE + manifests
    assert all(item["kept"] for item in told()["items"])
    version = registry.version("demo", first["small"].version)
    assert REMOVED in version.tags
    assert registry.measurement_of(version), "its figures stay"
    assert workspace.store.folder(second["small"].digest).exists()


def test_a_run_that_makes_the_same_again_puts_the_files_back(
    registry: Registry, workspace: Workspace
) -> None:
    first = released(registry, workspace, 1)
    released(registry, workspace, 2)
    for holding in unneeded(registry, workspace):
        pruning.remove(holding, registry, workspace)
    released(registry, workspace, 1)
    version = registry.version("demo", first["small"].version)
    assert REMOVED not in version.tags
    workspace.store.remove(version.digest)
    assert registry.fetch(version, workspace.store).digest == version.digest


class Data(BaseModel):
    data: Artifact


def test_data_of_finished_stages_and_what_is_being_made_stay(
    registry: Registry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, loose = made(workspace, "rows", "jsonl"), made(workspace, "loose")
    workspace.stages.run("download", 1, Data, {"a": 1}, lambda: Data(data=data))
    why = {one.digests: one.why for one in pruning.holdings(registry, workspace)}
    assert why[data.digest,] == "data or answers of the finished stage download"
    assert why[loose.digest,] == "made less than a day ago: it may be in use"
    monkeypatch.setattr(pruning, "IN_USE_SECONDS", -60.0)
    (holding,) = unneeded(registry, workspace)
    assert holding.digests == (loose.digest,)


def test_what_a_process_uses_stays(registry: Registry, workspace: Workspace) -> None:
    first = released(registry, workspace, 1)
    released(registry, workspace, 2)
    path = workspace.store.folder(first["large"].digest) / "weights"
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ):
        holdings = pruning.holdings(registry, workspace)
    why = {one.version.version: one.why for one in holdings if one.version}
    assert why[first["large"].version] == f"process {os.getpid()} runs in it"
