"""Make the tiny model and its data.

python -m examples.support_tickets OUT       in the new folder OUT
python -m examples.support_tickets --shared  in this machine's cache, unless it is there already
python -m examples.support_tickets --where   make nothing, print the folder in the cache
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from weighbridge.core.settings import Settings

from . import ERROR, SEED, BuildFailed, ensure, folder_in, logger


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 OUT cannot be made there, 3 the model
    did not learn enough, 1 anything else.
    """
    options = _parser().parse_args(arguments)
    if options.where:
        print(folder_in(Settings().cache, options.seed))
        return 0
    _print_log()
    if options.shared:
        return _shared(options.seed)
    return _own(options.out, options.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.support_tickets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="folder to make; must not exist"
    )
    where.add_argument("--shared", action="store_true", help="make it in this machine's cache")
    where.add_argument(
        "--where", action="store_true", help="print the folder in this machine's cache"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="other data, another model (default: %(default)s)"
    )
    return parser


def _print_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _shared(seed: int) -> int:
    try:
        logger.info("the model and its data: %s", ensure(Settings().cache, seed))
    except BuildFailed as error:
        return _failed(str(error), 1)
    return 0


def _own(out: Path, seed: int) -> int:
    if out.exists():
        return _failed(
            f"making {out}: it exists already; name a folder that does not, or remove it first", 2
        )
    # Read when torch is loaded. Threads that spin while they wait make the build ten times slower
    # on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils.logging import disable_progress_bar

    from .build import build
    from .pretrain import ProbeNotReached

    disable_progress_bar()
    try:
        build(out, seed)
    except ProbeNotReached as error:
        return _failed(f"making {out}: {error}", 3)
    except OSError as error:
        return _failed(f"making {out}: {error}", 2)
    return 0


def _failed(reason: str, status: int) -> int:
    print(f"{ERROR}{reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
