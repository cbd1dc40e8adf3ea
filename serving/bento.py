"""Bentos: built by the BentoML of the environment that they will run in, published whole, exported
as links to the artifact store.

::

    BENTOML_HOME/models/<name>/<digest>    the model's files, hard links to the artifact store where
        it can be
    BENTOML_HOME/bentos/<name>/<version>   BentoML's own layout; `src` holds what the service
        imports
    (artifact store) format `bento`        the same, exported: a Bento with its model inside, which
        runs without BentoML's store
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import weighbridge
from weighbridge.core.artifact import Artifact, File, digest_of
from weighbridge.core.environments import Environment, ensure, locks_of, one_at_a_time, uv
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.paths import PACKAGE
from weighbridge.core.private_folders import make_private
from weighbridge.core.processes import run
from weighbridge.core.store import Store, link_or_copy, sha256_of
from weighbridge.serving import bento_code
from weighbridge.serving.bento_candidate import BentoCandidate
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_for

logger = logging.getLogger(__name__)

BUILDER = Path(__file__).with_name("bento_build.py")
FORMAT = 1
"""To be raised when this module or the builder lays a Bento out differently: the same inputs then
get another version.
"""


@dataclass(frozen=True)
class Contents:
    """All that a Bento is made of; equal contents have equal versions."""

    name: str
    version: str
    """Leading part of the Bento's version, for people; may be empty."""
    label: str
    engine: EngineArgs
    model: Artifact
    lineage: Mapping[str, str]

    @property
    def plugin(self) -> Engine:
        return engine_for(self.engine)

    @property
    def lock(self) -> Path:
        """The lock of the environment that it runs in."""
        return self.plugin.lock()

    def programs(self) -> list[Path]:
        """Return the engine's executables that no environment holds: they travel in the Bento."""
        # Only the first word matters here, not address and Python: it is a path of its own where
        # the engine is a native build.
        program, *_ = self.plugin.command(self.model.path, "127.0.0.1", 1, Path("python"))
        return [Path(program)] if Path(program).is_absolute() else []

    @cached_property
    def digest(self) -> str:
        """Digest of all that goes in, so that the same Bento always has the same version."""
        parts = {
            "format": FORMAT,
            "name": self.name,
            "label": self.label,
            "engine": self.engine.model_dump(mode="json"),
            "model": self.model.digest,
            "lineage": dict(self.lineage),
            "code": bento_code.digest(),
            "locks": [sha256_of(lock) for lock in locks_of(self.lock)],
            "programs": [sha256_of(program) for program in self.programs()],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def bento_name(self) -> str:
        # BentoML's tags are lower case, and begin and end with a letter or a digit.
        return re.sub(r"[^a-z0-9._-]+", "-", self.name.lower()).strip("-._") or "model"

    @property
    def bento_version(self) -> str:
        prefix = re.sub(r"[^a-z0-9._-]+", "-", self.version.lower()).strip("-._")
        return f"{prefix}-{self.digest[:12]}" if prefix else self.digest[:12]

    @property
    def tag(self) -> str:
        return f"{self.bento_name}:{self.bento_version}"

    @property
    def model_version(self) -> str:
        return self.model.short


@dataclass(frozen=True)
class Built:
    """A Bento in BentoML's store."""

    tag: str
    folder: Path
    model: Path
    reused: bool


def bentoml_home() -> Path:
    """Return BentoML's own folder: `BENTOML_HOME`, or `~/bentoml`."""
    return Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml").expanduser().absolute()


def folder_of(tag: str) -> Path:
    """Return where BentoML's store keeps a Bento."""
    name, _, version = tag.partition(":")
    return bentoml_home() / "bentos" / name / version


def model_folder(name: str, version: str) -> Path:
    """Return the folder of a model in BentoML's store."""
    return bentoml_home() / "models" / name / version


def folders_of(tag: str, model: str) -> list[Path]:
    """Return the folders of a Bento, and of its model, in BentoML's store: those that are there.

    Args:
        tag: The Bento's.
        model: The version of its model there.
    """
    name, _, _ = tag.partition(":")
    folders = (folder_of(tag), model_folder(name, model))
    return [folder for folder in folders if folder.is_dir()]


def remove(folder: Path) -> None:
    """Remove a Bento or a model from BentoML's store; `latest` names the newest that is left."""
    shutil.rmtree(folder)
    latest = folder.parent / "latest"
    others = (path for path in folder.parent.iterdir() if path.is_dir())
    left = sorted(others, key=lambda path: path.stat().st_mtime)
    if left and latest.exists() and latest.read_text().strip() == folder.name:
        latest.write_text(left[-1].name)
    elif not left:
        shutil.rmtree(folder.parent)


def build(contents: Contents, cache: Path) -> Built:
    """Return the Bento in BentoML's store, built if it is not there; half of one is never visible.

    Raises:
        Unavailable: the environment cannot be built, or BentoML refuses.
    """
    home = bentoml_home()
    folder = folder_of(contents.tag)
    model = model_folder(contents.bento_name, contents.model_version)
    scratch_root = home / "tmp"
    make_private(home)
    scratch_root.mkdir(exist_ok=True)
    with one_at_a_time(
        scratch_root / f"weighbridge-{contents.bento_name}", f"building Bento {contents.tag}"
    ):
        if (model / "model.yaml").exists() and digest_of_model(model) != contents.model.digest:
            logger.warning("the model in %s is damaged: it is made again", model)
            shutil.rmtree(model)
        if (folder / "bento.yaml").exists() and (model / "model.yaml").exists():
            return Built(contents.tag, folder, model, reused=True)
        environment = ensure(contents.lock, cache)
        # A BENTOML_HOME of its own: BentoML writes file by file, so a build that is killed would
        # leave half a Bento in the store. On the same file system, so that publishing is a rename.
        with tempfile.TemporaryDirectory(prefix="weighbridge-", dir=scratch_root) as scratch:
            _stage(contents, Path(scratch) / "src")
            _build(contents, environment, Path(scratch))
            _link(
                contents.model.path,
                Path(scratch) / "home" / "models" / contents.bento_name / contents.model_version,
            )
            # The model first: a Bento that is visible must find its model.
            _publish(
                Path(scratch) / "home" / "models",
                home / "models",
                contents.bento_name,
                contents.model_version,
            )
            _publish(
                Path(scratch) / "home" / "bentos",
                home / "bentos",
                contents.bento_name,
                contents.bento_version,
            )
    return Built(contents.tag, folder, model, reused=False)


def digest_of_model(folder: Path) -> str:
    """Return the digest of the artifact that a model in BentoML's store was made of."""
    files = [
        File(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=_sha256(path, path.stat().st_mtime_ns),
        )
        for path in _files(folder)
        # BentoML's own description, beside the artifact's files.
        if path != folder / "model.yaml"
    ]
    return digest_of(files)


@lru_cache(maxsize=4096)
def _sha256(path: Path, changed: int) -> str:
    """Return a file's digest, computed once per process as long as it bears the same time."""
    return sha256_of(path)


def is_whole(tag: str, candidate: BentoCandidate, *, read_again: bool = False) -> bool:
    """Whether BentoML's store has a Bento, and the very model that it was built with.

    With `read_again` files are read again whose dates say that they have not changed.
    """
    if read_again:
        _sha256.cache_clear()
    name, _, version = candidate.model.partition(":")
    model = model_folder(name, version)
    # A model's version is the beginning of its digest, see `Contents`.
    return (folder_of(tag) / "bento.yaml").exists() and digest_of_model(model).removeprefix(
        "sha256:"
    ).startswith(version)


def export(built: Built, model: Artifact, store: Store, origin: Mapping[str, str]) -> Artifact:
    """Return the Bento with its model inside, as `bentoml export` lays it out.

    The model is not copied: the artifact store has its files already.
    """
    name, version = built.model.parent.name, built.model.name
    inside = f"models/{name}/{version}"
    stored = {file.path: file for file in store.files(model.digest)}
    # BentoML adds its description, `model.yaml`, to the model's own files.
    added = {path.relative_to(built.model).as_posix(): path for path in _files(built.model)}
    with store.scratch() as scratch:
        latest = scratch / "latest"
        latest.write_text(version)
        files = [
            *(file.model_copy(update={"path": f"{inside}/{to}"}) for to, file in stored.items()),
            _put(store, latest, f"models/{name}/latest"),
            *(
                _put(store, path, f"{inside}/{to}")
                for to, path in added.items()
                if to not in stored
            ),
            *(
                _put(store, path, path.relative_to(built.folder).as_posix())
                for path in _files(built.folder)
            ),
        ]
        return store.assemble(files, "bento", {**origin, "tag": built.tag})


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def _put(store: Store, path: Path, to: str) -> File:
    return store.put_blob(path, adopt=False).model_copy(update={"path": to})


def _stage(contents: Contents, src: Path) -> None:
    """Lay out what becomes the Bento's `src`."""
    (src / "weighbridge").mkdir(parents=True)
    shutil.copyfile(weighbridge.__file__, src / "weighbridge" / "__init__.py")
    for path in bento_code.files():
        target = src / "weighbridge" / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    lock = contents.lock
    for program in contents.programs():
        (src / "bin").mkdir(exist_ok=True)
        shutil.copy(program, src / "bin" / program.name)
    (src / "environment").mkdir()
    shutil.copyfile(lock, src / "environment" / lock.name)
    (src / "requirements.txt").write_text(
        "".join(_portable(path).read_text() for path in locks_of(lock))
    )
    candidate = BentoCandidate(
        name=contents.bento_name,
        label=contents.label,
        engine=contents.engine.model_dump(mode="json"),
        model=f"{contents.bento_name}:{contents.model_version}",
        takes_name=True,
        lock=f"environment/{lock.name}",
    )
    (src / "candidate.json").write_text(candidate.model_dump_json(indent=1))
    (src / "lineage.json").write_text(json.dumps(dict(contents.lineage), indent=1, sort_keys=True))


def _portable(lock: Path) -> Path:
    """Return the lock as whoever installs the Bento elsewhere needs it: with PyTorch as its index
    carries it, not with this machine's build.
    """
    return lock.with_name("torch.lock") if lock.name == "torch.cpu.lock" else lock


def _build(contents: Contents, environment: Environment, scratch: Path) -> None:
    settings: dict[str, Any] = {
        "name": contents.bento_name,
        "version": contents.bento_version,
        "model": f"{contents.bento_name}:{contents.model_version}",
        "labels": _labels(contents),
        "description": _description(contents),
        "metadata": {
            "digest": contents.model.digest,
            "format": contents.model.format,
            **contents.model.origin,
        },
    }
    settings_file = scratch / "settings.json"
    settings_file.write_text(json.dumps(settings))
    home = scratch / "home"
    env = {
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENTO_BUILD_SETTINGS": str(settings_file),
        # BentoML imports the service and keeps its port: else every build would have another one.
        "WEIGHBRIDGE_ENGINE_PORT": "8000",
        # BentoML looks for uv before it knows whether it needs it, and would install it by pip,
        # which is not there.
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(uv()).parent)]),
    }
    finished = run("bentoml build", [environment.python, BUILDER], env=env, cwd=scratch / "src")
    if finished.status != 0:
        logger.info("%s", finished.output)
        raise Unavailable(f"building Bento {contents.tag}", finished.tail(6))


def _labels(contents: Contents) -> dict[str, str]:
    return {
        **contents.lineage,
        "weighbridge.candidate": contents.label,
        "weighbridge.model": contents.model.digest,
        "openai_endpoint": "/v1",
    }


def _description(contents: Contents) -> str:
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in sorted(_labels(contents).items()))
    return (
        f"# {contents.bento_name}\n\nAn OpenAI-compatible endpoint. "
        f"`bentoml serve {contents.tag}`, then ask `/v1/chat/completions`.\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
    )


def _link(source: Path, to: Path) -> None:
    """Link the artifact's files into BentoML's model folder: BentoML itself would copy them."""
    for path in _files(source):
        link_or_copy(path, to / path.relative_to(source))


def _publish(scratch: Path, final: Path, name: str, version: str) -> None:
    """Move a finished item into a store of BentoML's, and have `latest` name it."""
    target = final / name / version
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        # Half of one is left where somebody else's build was killed.
        is_whole = (target / "bento.yaml").exists() or (target / "model.yaml").exists()
        if not is_whole:
            shutil.rmtree(target)
    # Whoever else writes to BentoML's store does not wait for our lock.
    with suppress(FileExistsError):
        if not target.exists():
            (scratch / name / version).rename(target)
    replace_text(final / name / "latest", version)
