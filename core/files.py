"""Small files that are replaced as a whole: nobody ever reads half of one, not even after a power
cut.
"""

import os
import threading
from pathlib import Path


def replace_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Have `path` hold `text`; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)
