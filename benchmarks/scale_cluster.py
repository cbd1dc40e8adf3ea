"""A promotion on Kubernetes, in a cluster's stand-in whose engines load for a known time.

What is left of a rollout's seconds, from its begin until the new version has all requests, once the
engine's own start is taken off, is ours: objects applied, looks at pods, the probe's questions, the
route, the records. The old version's end comes after that and holds nobody up. A real cluster adds
its scheduler, image pulls, a probe a second and its gateway's pace. See benchmarks/scale.py.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from benchmarks.common import Figures
from tests.cluster.lab import Lab, StandIn, judge_little
from weighbridge.conformance.kubernetes_api.pods import Image
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import target_operations

LOAD_SECONDS: Final = 3.0
GOAL_SECONDS: Final = 2.0


@contextmanager
def cluster(versions: int) -> Iterator[Lab]:
    images = {
        f"registry/demo:{version}": Image(load_seconds=LOAD_SECONDS)
        for version in range(1, versions + 1)
    }
    nodes: dict[str, dict[str, str]] = {"node-1": {}, "node-2": {}}
    with (
        tempfile.TemporaryDirectory(prefix="scale") as folder,
        StandIn(images, nodes, gateway_api=True) as stand_in,
        pytest.MonkeyPatch.context() as patch,
    ):
        judge_little(patch)
        patch.setenv("KUBECONFIG", str(stand_in.kubeconfig(Path(folder) / "kubeconfig")))
        yield Lab(stand_in, Workspace(Settings(home=Path(folder) / "home")))


def promotion(rounds: int) -> Figures:
    """Return the seconds of rollouts, without the engine's own start, by what is in front."""
    figures = Figures("scale-promotion")
    for address in ("service", "gateway"):
        with cluster(rounds + 1) as shop:
            shop.behind(address)
            for number in range(1, rounds + 2):
                assert shop.promote(str(number)).action == "deployed"
                while not target_operations.stop_drained("shop", shop.workspace):
                    time.sleep(0.1)
        # The first one has nobody to take over from.
        times = {
            event: [line.at for line in shop.registry.ledger if line.event == event][1:]
            for event in ("begin", "end")
        }
        seconds = [end - begin - LOAD_SECONDS for begin, end in zip(*times.values(), strict=True)]
        figures.add(f"promotion_over_start_seconds_{address}", seconds, at_most=GOAL_SECONDS)
    return figures
