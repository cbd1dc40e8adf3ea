"""Old weights: what takes room on this machine, what still needs it, and the removal of the rest.

One file may be linked from the artifact store, from MLflow's folder of a version and from Bentos;
it is gone once nobody links to it. A version that is not needed loses its files alone: its figures,
its lineage and its tags stay in MLflow, and a run that makes the same again puts the files back.
"""

import json
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.core.artifact import recorded_in
from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.pruning import files_in, mapped
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry, Version
from weighbridge.rollout.champion import BENTO, BENTO_DIGEST, find_measured
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.state import home_records, known_targets, read_state
from weighbridge.serving import bento
from weighbridge.serving.targets.base import Release, Revision

IN_USE_SECONDS = 86400.0
"""Age from which what nothing names is taken for left behind, and not for being made right now."""


@dataclass(frozen=True)
class Holding:
    """Something that takes room: a version's files, a Bento, data, what was left behind."""

    what: str
    paths: tuple[Path, ...]
    why: str = ""
    """Why it stays; empty where nothing needs it."""
    version: Version | None = None
    digests: tuple[str, ...] = ()
    """Of artifacts in the store that go with it."""

    @property
    def bytes(self) -> int:
        """Return what it takes; a file that is linked several times counts once."""
        return sum({inode: size for inode, size, _ in files_in(self.paths)}.values())


@dataclass
class _Needs:
    """What is needed, and by what: the first reason that was found."""

    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def version(self, name: str, number: str, why: str) -> None:
        self.versions.setdefault((name, number), why)


def holdings(registry: Registry, workspace: Workspace) -> list[Holding]:
    """Return everything of ours that takes room, and why each of it stays or does not.

    Raises:
        Unavailable: MLflow does not answer: nobody knows then what is needed.
    """
    versions = [version for name in registry.names() for version in registry.versions(name)]
    needs = _needs(versions, registry, workspace)
    of_versions = [_of_version(version, needs, registry, workspace) for version in versions]
    taken = {digest for holding in of_versions for digest in holding.digests}
    digests = [digest for digest in workspace.store.digests() if digest not in taken]
    stages = _stages_of_texts(workspace)
    others = [_of_digest(digest, needs, stages, workspace) for digest in digests]
    found = [one for one in [*of_versions, *others, *_leftovers(workspace)] if one.paths]
    used = mapped({_folder(path) for one in found if not one.why for path in one.paths})
    return [one if one.why else _unless_used(one, used) for one in found]


def needed_digests(registry: Registry, workspace: Workspace) -> dict[str, str]:
    """Return the artifacts that something known here needs, and what needs each.

    Raises:
        Unavailable: MLflow does not answer.
    """
    versions = [version for name in registry.names() for version in registry.versions(name)]
    needs = _needs(versions, registry, workspace)
    of_versions = {
        version.digest: needs.versions[version.name, version.version]
        for version in versions
        if (version.name, version.version) in needs.versions
    }
    return {**of_versions, **needs.digests}


def remove(holding: Holding, registry: Registry, workspace: Workspace) -> None:
    """Remove what nothing needs. A removal that breaks off is finished by the next one."""
    if holding.version is not None:
        registry.remove_files(holding.version)
        for path in holding.paths:
            if bento.bentoml_home() in path.parents:
                bento.remove(path)
    # The store last: its blobs go with the last link to them.
    for digest in holding.digests:
        with suppress(Unavailable):
            workspace.store.remove(digest)
    if holding.version is None and not holding.digests:
        for path in holding.paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def freed_by(paths: Iterable[Path]) -> int:
    """Return the bytes that removing these paths would free: files with no other link."""
    sizes: dict[int, int] = {}
    links_left: dict[int, int] = {}
    for inode, size, links in files_in(paths):
        sizes[inode] = size
        links_left[inode] = links_left.get(inode, links) - 1
    return sum(size for inode, size in sizes.items() if links_left[inode] <= 0)


def _needs(versions: Sequence[Version], registry: Registry, workspace: Workspace) -> _Needs:
    needs, by_number = _Needs(), {(one.name, one.version): one for one in versions}
    for version in versions:
        if version.aliases:
            needs.version(version.name, version.version, f"alias {', '.join(version.aliases)}")
    for target in known_targets(workspace.settings.home):
        for release, why in _at_target(target, workspace):
            needs.version(release.name, release.version, why)
            needs.digests.setdefault(release.digest, why)
    for name, number, why in _in_ledgers(registry):
        needs.version(name, number, why)
    for version in _of_last_release(versions):
        needs.version(version.name, version.version, "of the last release")
    for version in versions:
        if version.aliases:
            why = f"version {version.version} ({', '.join(version.aliases)}) was made of it"
            for ancestor in _lineage(version, by_number):
                needs.version(ancestor.name, ancestor.version, why)
    for version in versions:
        if (version.name, version.version) in needs.versions:
            needs.digests |= _brought_by(version, registry) | needs.digests
    return needs


def _at_target(target: str, workspace: Workspace) -> Iterator[tuple[Release, str]]:
    managed = open_target(target, workspace)
    records = managed.records if managed else home_records(target, workspace.settings.home)
    state = read_state(records, Revision)
    if state.current is not None:
        yield state.current.release, f"serves at {target}"
    if state.rollout is not None:
        yield state.rollout.next.release, f"is being rolled out to {target}"
        if state.rollout.previous is not None:
            yield state.rollout.previous.release, f"a rollout to {target} may go back to it"
    for draining in state.draining:
        yield draining.revision.release, f"drains at {target}"
    for release in state.previous_releases:
        yield release, f"a rollback of {target} goes back to it"


def _in_ledgers(registry: Registry) -> Iterator[tuple[str, str, str]]:
    for binding in registry.bindings():
        for rollout in registry.history(binding.target):
            if rollout.outcome == "serving":
                day = time.strftime("%Y-%m-%d", time.localtime(rollout.began))
                why = f"served at {binding.target} on {day}, says the ledger"
                yield rollout.name, rollout.version, why


def _of_last_release(versions: Sequence[Version]) -> Iterator[Version]:
    """Yield the newest version of each model, what it was made of, and what was made beside it.

    The next run of its recipe goes on from there.
    """
    by_number = {(one.name, one.version): one for one in versions}
    for name in {version.name for version in versions}:
        of_model = [one for one in versions if one.name == name]
        newest = max(of_model, key=lambda one: int(one.version))
        yield from _lineage(newest, by_number)
        if newest.parent:
            yield from (one for one in of_model if one.parent == newest.parent)


def _lineage(version: Version, by_number: Mapping[tuple[str, str], Version]) -> Iterator[Version]:
    seen: set[str] = set()
    following: Version | None = version
    while following is not None and following.version not in seen:
        seen.add(following.version)
        yield following
        following = by_number.get((version.name, following.parent))


def _brought_by(version: Version, registry: Registry) -> dict[str, str]:
    """Return the digests of a version's artifact, its Bento and the answers it is probed with."""
    what = f"version {version.version} of {version.name}"
    digests = {version.digest: what}
    if BENTO_DIGEST in version.tags:
        digests[version.tags[BENTO_DIGEST]] = f"Bento of {what}"
    # A measurement that cannot be read, or is of a plugin that is gone, is probed with nothing.
    with suppress(ValueError, WeighbridgeError):
        measured = find_measured(registry, version)
        if measured and (answers := measured.measurement.predictions):
            digests[answers.digest] = f"answers of {what}: it is probed with them"
    return digests


def _of_version(
    version: Version, needs: _Needs, registry: Registry, workspace: Workspace
) -> Holding:
    store, why = workspace.store, needs.versions.get((version.name, version.version), "")
    digests = [version.digest, version.tags.get(BENTO_DIGEST, "")]
    stored = tuple(digest for digest in digests if digest and store.folder(digest).exists())
    bentos = _bento_folders(version)
    if not why:
        # Its artifact may be another version's as well.
        stored = tuple(digest for digest in stored if digest not in needs.digests)
        bentos = [] if version.digest in needs.digests else bentos
    paths = (*registry.files_here(version), *bentos, *_stored(stored, workspace))
    what = f"version {version.version} of {version.name} ({version.label})"
    return Holding(what, paths, why, version, stored)


def _stored(digests: Collection[str], workspace: Workspace) -> Iterator[Path]:
    """Yield where the store keeps artifacts: their folders, and the blobs that those link to."""
    store = workspace.store
    for digest in digests:
        yield store.folder(digest).parent
        with suppress(Unavailable):
            yield from (store.blob_path(file.sha256) for file in store.files(digest))


def _bento_folders(version: Version) -> list[Path]:
    if BENTO not in version.tags:
        return []
    return bento.folders_of(version.tags[BENTO], version.short)


def _of_digest(
    digest: str, needs: _Needs, stages: Mapping[str, str], workspace: Workspace
) -> Holding:
    """Return an artifact in the store that is no version's and no version's Bento."""
    why = needs.digests.get(digest, "")
    if not why and (stage := stages.get(digest)):
        why = f"data or answers of the finished stage {stage}"
    age = time.time() - workspace.store.folder(digest).parent.stat().st_ctime
    if not why and age < IN_USE_SECONDS:
        why = "made less than a day ago: it may be in use"
    paths = tuple(_stored([digest], workspace))
    return Holding(f"artifact {digest.removeprefix('sha256:')[:12]}", paths, why, None, (digest,))


def _stages_of_texts(workspace: Workspace) -> dict[str, str]:
    """Return, by digest, a stage whose result holds this artifact of texts, not weights."""
    stages: dict[str, str] = {}
    for record in sorted(workspace.stages.root.glob("*/*.json")):
        # One that cannot be read keeps nothing.
        with suppress(ValueError):
            for digest, format in recorded_in(json.loads(record.read_text(errors="replace"))):
                if format == "jsonl":
                    stages.setdefault(digest, record.parent.name)
    return stages


def _leftovers(workspace: Workspace) -> Iterator[Holding]:
    for folder in sorted((workspace.settings.home / "runs").glob("*/")):
        why = "the next run of its recipe goes on from there"
        yield Holding("checkpoints of a fine-tune that was broken off", (folder,), why)
    paths = workspace.store.leftovers(time.time() - IN_USE_SECONDS)
    if paths:
        yield Holding("what broken-off downloads and killed runs left", tuple(paths))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _unless_used(holding: Holding, used: Mapping[Path, str]) -> Holding:
    why = next((used[_folder(path)] for path in holding.paths if _folder(path) in used), "")
    return Holding(holding.what, holding.paths, why, holding.version, holding.digests)
