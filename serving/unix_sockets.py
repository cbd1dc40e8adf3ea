"""Where Unix sockets lie: in the home, or in a private temporary folder where they cannot."""

import hashlib
import os
import tempfile
from pathlib import Path

from weighbridge.core.errors import Unavailable

LONGEST_SOCKET_PATH = 90
"""Bytes: the kernel allows 107, and supervisord first binds to a name that has its process id
appended.
"""


def short_socket(path: Path) -> Path:
    """Return the path itself; or one in a private temporary folder, where the kernel would find
    the path too long, or haproxy a variable in it, which it looks for even between quotes.
    """
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and "$" not in str(path):
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"weighbridge-{os.getuid()}" / f"{name}.sock"


def make_socket_folder(path: Path, home: Path) -> None:
    """Make a socket's folder, private where it is not `home` itself.

    Raises:
        Unavailable: it is there, and others may use it.
    """
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The temporary folder is everybody's: somebody else may have made this name there first.
    if folder != home and (folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077):
        remedy = "remove it, or shorten WEIGHBRIDGE_HOME"
        raise Unavailable("making a socket", f"{folder} is not private to you", remedy)
