"""One rank of a fine-tune, as torchrun starts it on every machine that takes part.

Usage: ``torchrun … -m weighbridge.tasks.finetune_rank [--record] REQUEST``; see
`weighbridge.tasks.ranks`. With ``--record`` the first rank notes the result as a finished stage and
shares it, so that a release finds it; without, it only prints it.
"""

import json
import logging
import os
import sys
from typing import Final

from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.finetune import VERSION, finetune, identity
from weighbridge.tasks.finetune_args import Finetuned
from weighbridge.tasks.ranks import FAILED, RESULT, STEP, RankRequest, is_first

_RECORDED: Final = "weighbridge/recorded"
"""Key under which the first rank says what is recorded."""


def train(request: RankRequest, workspace: Workspace, *, record: bool) -> Finetuned:
    """Train as one of the ranks; all get the same result.

    Raises:
        BadInput: torchrun started another number of ranks, or the machines share no store.
        Unavailable: base or data cannot be fetched.
    """
    doing, world = "joining the fine-tune", int(os.environ.get("WORLD_SIZE", "1"))
    if world != request.args.ranks:
        wrong = f"torchrun started {world} ranks, the recipe says {request.args.ranks}"
        raise BadInput(doing, wrong, "start it with what `weighbridge torchrun` prints")
    if request.args.nodes > 1 and workspace.shared is None:
        raise BadInput(doing, "the machines share no store", "set WEIGHBRIDGE_STORE on each")
    request = workspace.store.bind(request)
    base, data, args = request.base, request.data, request.args

    def compute() -> Finetuned:
        return finetune(base, data, args, workspace, _tell)

    if not record:
        return compute()
    inputs = identity(base, data, args)
    recorded = _first_ranks(workspace.stages.forecast("finetune", VERSION, Finetuned, inputs).value)
    if is_first():
        # Alone: it shares the record, or the one that was found.
        return workspace.stages.run("finetune", VERSION, Finetuned, inputs, compute).value
    return compute() if recorded is None else recorded


def _first_ranks(value: Finetuned | None) -> Finetuned | None:
    """Return what the first rank has, on every rank: else some would train, and wait for it."""
    from torch.distributed.rendezvous import rendezvous

    # By torchrun's own store: a process group would leave addresses in it that the trainer's group,
    # the next one, would take for its own.
    store, _, _ = next(rendezvous("env://"))
    if is_first():
        store.set(_RECORDED, value.model_dump_json() if value else "")
        return value
    text = store.get(_RECORDED).decode()
    return Finetuned.model_validate_json(text) if text else None


def _tell(step: int, figures: dict[str, float]) -> None:
    print(f"{STEP}{json.dumps({'step': step, 'figures': figures})}", flush=True)


def main(arguments: list[str]) -> int:
    """Train, print the result on the first rank, and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    *options, text = arguments
    try:
        request = RankRequest.model_validate_json(text)
        result = train(request, Workspace(), record="--record" in options)
    except WeighbridgeError as exc:
        print(f"{FAILED}{exc.as_json()}", flush=True)
        return exc.exit_code
    if is_first():
        print(f"{RESULT}{result.model_dump_json()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
