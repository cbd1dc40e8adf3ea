"""Log lines: ours on the pages of Prefect's UI, Prefect's own in the terminal."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logs_on_pages() -> Iterator[None]:
    """Show what our own code logs on the page of the flow or task that it belongs to."""
    from prefect.logging.handlers import APILogHandler

    handler = APILogHandler(level=logging.INFO)
    logging.getLogger("weighbridge").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("weighbridge").removeHandler(handler)


class NoEmptyTraceback(logging.Filter):
    """Removes the traceback "NoneType: None", which Prefect logs with a returned Failed state."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info == (None, None, None):
            record.exc_info = None
        return True
