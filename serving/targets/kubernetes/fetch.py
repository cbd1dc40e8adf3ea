"""Fetch a Bento from the shared store into a pod's volume, before its server starts.

`python -m weighbridge.serving.targets.kubernetes.fetch DIGEST FOLDER`, with WEIGHBRIDGE_STORE, and
a WEIGHBRIDGE_HOME on the same volume.
"""

import sys
from pathlib import Path

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.workspace import Workspace


def fetch(digest: str, folder: Path, workspace: Workspace) -> None:
    """Have `folder` be the artifact of this digest, every file verified.

    Done again it changes nothing: a pod may be started anew on the same volume.

    Raises:
        Unavailable: it is not in the store, or the store can't be reached.
    """
    if folder.exists():
        return
    fetched = workspace.store.locate(digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fetched.rename(folder)


def _main() -> None:
    digest, folder = sys.argv[1:]
    try:
        fetch(digest, Path(folder), Workspace())
    except WeighbridgeError as exc:
        # What Kubernetes shows of a container that failed is the end of its log.
        raise SystemExit(f"error: {exc}") from exc
    except OSError as exc:
        raise SystemExit(f"error: fetching {digest[:19]} into {folder}: {exc}") from exc


if __name__ == "__main__":
    _main()
