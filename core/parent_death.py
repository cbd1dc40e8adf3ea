"""Have the kernel end a process with the one that started it.

The standard library alone: the reaper imports it under any Python.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
"""Of <sys/prctl.h>."""
# Loaded here, since between fork and exec the child of a process with threads must take no lock.
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as the thread that started it ends.

    Args:
        parent: Id of the process that started this one: where that has ended already, this one
            ends now.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the kernel was asked.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
