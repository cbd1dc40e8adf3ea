"""Fine-tuning in several processes: the command lines of torchrun, and those of one machine started
here.

Every rank gets the same request: base and data by their digests, fetched from the store that the
machines share. The first rank shares what comes out. No secret is in a command line: the store's
credentials are in the environment, as for any other stage.
"""

import json
import os
import sys
from typing import Final

from pydantic import BaseModel, ConfigDict

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable, error_from
from weighbridge.core.processes import run
from weighbridge.core.stage_cache import fingerprint
from weighbridge.tasks.finetune_args import FinetuneArgs, Finetuned, OnLog

RANK_MODULE: Final = "weighbridge.tasks.finetune_rank"
PORT: Final = 29400
"""Where the first machine listens for the others: torchrun's own default."""
STEP, RESULT, FAILED = "step: ", "result: ", "failed: "
"""How the lines begin that the first rank prints for whoever started it."""


class RankRequest(BaseModel):
    """What every rank is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Artifact
    data: Artifact
    args: FinetuneArgs

    @property
    def run_id(self) -> str:
        """A name of this very fine-tune, the same on all machines."""
        return f"finetune-{fingerprint(self)[:12]}"


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or rank 0 of those that torchrun
    started.
    """
    return os.environ.get("RANK", "0") == "0"


def is_first_of_machine() -> bool:
    """Whether this process is the only one of this machine, or the first of its ranks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def rank_words(request: RankRequest) -> list[str]:
    """Return module and arguments by which torchrun starts a rank that records what it makes."""
    return ["-m", RANK_MODULE, "--record", request.model_dump_json()]


def torchrun_command(request: RankRequest, rendezvous: str) -> list[str]:
    """Return the command that is run on every machine, the same on each.

    Args:
        request: What is trained.
        rendezvous: Host and port of the first machine, which the others can reach.
    """
    return [
        "torchrun",
        f"--nnodes={request.args.nodes}",
        f"--nproc-per-node={request.args.processes_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={rendezvous}",
        f"--rdzv-id={request.run_id}",
        # Again from the start of a rank: that goes on from the last checkpoint.
        "--max-restarts=2",
        *rank_words(request),
    ]


def launch(base: Artifact, data: Artifact, args: FinetuneArgs, on_log: OnLog) -> Finetuned:
    """Fine-tune in processes of this machine, as many as the arguments say.

    Raises:
        BadInput: the arguments want more machines, or a rank refuses what it is given.
        Unavailable: a rank has failed.
    """
    doing = f"fine-tuning in {args.ranks} processes"
    if args.nodes > 1:
        remedy = "start it on each of them with what `weighbridge torchrun RECIPE` prints"
        raise BadInput(doing, f"they are to run on {args.nodes} machines", remedy)
    request = RankRequest(base=base, data=data, args=args)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        f"--nproc-per-node={args.processes_per_node}",
        *("-m", RANK_MODULE, request.model_dump_json()),
    ]
    said: dict[str, str] = {}

    def take(line: str) -> None:
        if line.startswith(STEP):
            entry = json.loads(line.removeprefix(STEP))
            on_log(entry["step"], entry["figures"])
        for kind in (RESULT, FAILED):
            if line.startswith(kind):
                said[kind] = line.removeprefix(kind)

    done = run("torchrun", command, on_line=take)
    if RESULT in said and done.status == 0:
        return Finetuned.model_validate_json(said[RESULT])
    if FAILED in said:
        raise error_from(said[FAILED])
    raise Unavailable(doing, done.tail(6)[-480:], "run again: it goes on from its last checkpoint")
