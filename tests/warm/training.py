"""Fine-tunes in processes of this Python, and torchrun with all of its ranks."""

import sys

from tests.warm.starts import Origin, WarmStarts, importing

LIBRARIES = (
    "torch.distributed.run",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "weighbridge.tasks.training",
    "weighbridge.tasks.merging",
)
IMPORTS = (
    f"{importing(*LIBRARIES)}; "
    "from tests.warm import torchrun_ranks; torchrun_ranks.begin_as_copies()"
)


class WarmTraining(WarmStarts):
    """Whatever this Python runs."""

    def origin_of(self, command: list[str]) -> Origin | None:
        if command[0] != sys.executable:
            return None
        address, variables = self.folder / "training.sock", {"OMP_NUM_THREADS": "1"}
        return Origin(address, self.owner, IMPORTS, variables=variables)
