"""The Bento that a local target runs: where it lies, and what requests may call it."""

import contextlib
import logging
from pathlib import Path

from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process
from weighbridge.serving.bento_candidate import BentoCandidate
from weighbridge.serving.engines.base import engine_class
from weighbridge.serving.targets.base import Release

logger = logging.getLogger(__name__)


def model_names(candidate: BentoCandidate, name: str) -> tuple[str, ...]:
    """Return what requests may call a Bento that is started by this name; none: anything."""
    if not candidate.takes_name:
        return ()
    plugin = engine_class(candidate.engine["kind"])
    try:
        engine = plugin(plugin.Args.model_validate(candidate.engine))
    except ValueError:  # options of another version of the engine's plugin
        return ()
    return tuple(sorted(plugin(engine.called(name)).model_names()))


def bento_folder(release: Release, home: Path, *, read_again: bool = False) -> Path:
    """Return the Bento to run: exported in the artifact store, or else in BentoML's store.

    Args:
        release: what it was built for.
        home: of the installation.
        read_again: whether files are read whose dates say that they have not changed.

    Raises:
        Unavailable: it is whole in neither.
    """
    store, wrong = Workspace(Settings(home=home)).store, "the Bento is not on this machine"
    with contextlib.suppress(Unavailable):
        files = store.files(release.digest)
        wrong = "the Bento is damaged"
        if read_again and (damaged := store.damaged(release.digest)):
            logger.warning("%s: damaged in the store: %s", release.bento, ", ".join(damaged))
        # Links to damaged files would be as damaged: `assemble` refuses them.
        artifact = store.assemble(files, "bento")
        if any(file.path == "bento.yaml" for file in files):
            return artifact.path
    folder = bento.folder_of(release.bento)
    # Its model are links to the store's files, as a rule.
    if (folder / "bento.yaml").exists():
        candidate = bento_process.candidate_of(folder)
        if bento.is_whole(release.bento, candidate, read_again=read_again):
            return folder
        wrong = "the model of the Bento is damaged"
    raise Unavailable(f"deploying {release.bento}", wrong, "run the recipe again to package it")
