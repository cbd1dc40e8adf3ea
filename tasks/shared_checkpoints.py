"""Checkpoints of a fine-tune in the shared store: another machine goes on from the last one.

::

    <prefix>/checkpoints/<run>/<step>/…     its files
    <prefix>/checkpoints/<run>/last.json    step and files of the newest one; written after those

They are shared on a thread of their own, so that training does not wait, and not more often than
once a minute. Older ones are removed where the bucket's policy allows it.
"""

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from weighbridge.core import s3
from weighbridge.core.artifact import File
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.store import link_or_copy, sha256_of
from weighbridge.core.uploads import Upload, send_missing

EVERY: Final = 60.0
"""Seconds between two: as much work is lost with a machine, at most."""

logger = logging.getLogger(__name__)


class _Last(BaseModel):
    step: int
    files: list[File]


class SharedCheckpoints:
    """Those of one run, named by everything that it depends on."""

    def __init__(self, run: str, shared: SharedStore) -> None:
        self._location = shared.location
        self._folder = f"checkpoints/{run}"
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._shared = -EVERY

    def fetch(self, folder: Path) -> None:
        """Bring the last checkpoint into the run's folder, where that has none as far on.

        One that cannot be had is told and left: the run goes on from what is here.
        """
        try:
            last = self._last()
            if last is None or _last_step(folder) >= last.step:
                return
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
                for file in last.files:
                    self._fetch_file(file, last.step, Path(scratch) / file.path)
                Path(scratch).chmod(0o755)
                shutil.copytree(scratch, folder / f"checkpoint-{last.step}", dirs_exist_ok=True)
        except (WeighbridgeError, OSError) as exc:
            logger.warning("the last checkpoint of another machine is left: %s", exc)
            return
        logger.info("going on from step %d, which another machine has shared", last.step)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Share on a thread what is given to `share` within the block."""
        try:
            yield
        finally:
            self._pool.shutdown(cancel_futures=True)

    def share(self, checkpoint: Path) -> None:
        """Share a whole checkpoint, while training goes on."""
        now = time.monotonic()
        if now - self._shared < EVERY:
            return
        self._shared = now
        # By links: the trainer removes all but its last two.
        kept = Path(tempfile.mkdtemp(dir=checkpoint.parent, prefix=".sharing-"))
        for path in checkpoint.rglob("*"):
            if path.is_file():
                link_or_copy(path, kept / path.relative_to(checkpoint))
        self._pool.submit(self._send, kept, int(checkpoint.name.rpartition("-")[2]))

    def _send(self, kept: Path, step: int) -> None:
        try:
            before = self._last()
            files = [
                File(
                    path=path.relative_to(kept).as_posix(),
                    size=path.stat().st_size,
                    sha256=sha256_of(path),
                )
                for path in sorted(kept.rglob("*"))
                if path.is_file()
            ]
            uploads = [Upload(file, kept / file.path, self._key(step, file)) for file in files]
            send_missing(uploads, self._location, f"sharing checkpoint {step}")
            last = _Last(step=step, files=files)
            s3.put(self._location, self._last_key, last.model_dump_json(indent=1).encode())
            if before is not None and before.step != step:
                old = [self._key(before.step, file) for file in before.files]
                with contextlib.suppress(WeighbridgeError):
                    s3.delete(self._location, old)
        # Training goes on without: the next one is shared, or none.
        except (WeighbridgeError, OSError) as exc:
            logger.warning("checkpoint %d is not shared: %s", step, exc)
        finally:
            shutil.rmtree(kept, ignore_errors=True)

    def _last(self) -> _Last | None:
        text = s3.get(self._location, self._last_key)
        try:
            return None if text is None else _Last.model_validate_json(text)
        except ValidationError:
            return None

    def _fetch_file(self, file: File, step: int, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        remote = RemoteFile(path=self._key(step, file), size=file.size, sha256=file.sha256)
        s3.download(self._location, remote, to, lambda _: None)
        if sha256_of(to) != file.sha256:
            raise OSError(f"{file.path} of step {step} is damaged")

    def _key(self, step: int, file: File) -> str:
        return f"{self._folder}/{step}/{file.path}"

    @property
    def _last_key(self) -> str:
        return f"{self._location.folder}{self._folder}/last.json"


def _last_step(folder: Path) -> int:
    """Return the step of the newest whole checkpoint here; -1 where there is none."""
    # Imported here: it takes torch with it.
    from weighbridge.tasks.training import last_whole

    checkpoint = last_whole(folder)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else -1
