"""A start by names of other libraries that are not public: what to do when one of them is gone.

Prefect and MLflow start in seconds the public way and in a fraction of that by names inside them.
A minor release may change those. Then the public way is taken, with a line that says so.
"""

import logging
from importlib.metadata import version
from typing import Final

from weighbridge.core.formatting import one_line

logger = logging.getLogger(__name__)

NAME_IS_GONE: Final = (AttributeError, ImportError, TypeError)
"""What follows when a library has removed or moved a name, or wants other arguments for it."""

_warned: set[str] = set()


def warn_name_is_gone(library: str, error: BaseException) -> None:
    """Log, once per library, that a name inside it is gone and the public way is taken."""
    if library in _warned:
        return
    _warned.add(library)
    logger.warning(
        "%s %s has changed inside (%s), so it starts the public way, which takes longer. Please "
        "report this line; WEIGHBRIDGE_FAST_START=false turns the attempt and the line off",
        library,
        version(library),
        one_line(error),
    )
