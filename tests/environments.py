"""Build the locked environments that tests need while the first of them run: `python -m
tests.environments`.

A test that needs one before it is there waits for its lock, so nothing is built twice.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.stand_ins import swift
from weighbridge.core import plugins
from weighbridge.core.environments import ensure
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engines.base import engine_class
from weighbridge.tasks.harness import lm_eval
from weighbridge.tasks.optimizers.base import load_optimizer


def locks() -> Iterator[Path]:
    """Yield the locks of engines that run on a processor, of optimizers, of stand-ins and of the
    harness.

    llama.cpp's and those of optimizers come first: most of the tests that begin need them.
    """
    engines = [engine_class(name).locks.get("cpu") for name in plugins.names("engine")]
    optimizers = [load_optimizer(name).lock for name in plugins.names("optimizer")]
    first = [lock for lock in (*engines[:1], *optimizers) if lock]
    yield from dict.fromkeys([*first, *filter(None, engines), swift.LOCK, lm_eval.LOCK])


def main() -> None:
    """Build them one after another; what cannot be built is told by the test that needs it."""
    cache = Settings().cache
    with suppress(WeighbridgeError):
        llama_cpp_native.source(cache)
    for lock in locks():
        with suppress(WeighbridgeError):
            ensure(lock, cache)


if __name__ == "__main__":
    main()
