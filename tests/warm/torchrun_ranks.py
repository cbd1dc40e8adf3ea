"""Ranks of a torchrun among the copies of an origin: each begins as a copy of it."""

import atexit
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tests.warm.exec_with_imports import become


def begin_as_copies() -> None:
    """Have torchrun start its ranks so, in this process and its copies."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    starts_ranks: Any = subprocess_handler
    starts_ranks.Popen = Rank


class Rank(subprocess.Popen[bytes]):
    """A copy of torchrun's process that goes on as the rank that it starts."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], **_: Any) -> None:
        self.args, self.returncode = args, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, 4096)
            # What torchrun has to do at its end is not its rank's to do.
            atexit._clear()
            become(args, env)
