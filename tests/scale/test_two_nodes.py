"""A fine-tune over two machines, killed meanwhile: it ends as one process does with the batches of
both.

It takes half a minute of a processor, which the ordinary run of all tests has not to spare::

    WEIGHBRIDGE_TWO_HOSTS=1 python -m pytest tests/scale/test_two_nodes.py
"""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import MACHINE_CACHE
from tests.scale.hosts import Host, Network, missing
from tests.stand_ins.swift import Swift
from tests.tasks.fine_tuning import STEPS, arguments, chat, stored_model, stored_rows
from tests.waiting import until
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.finetune import VERSION, finetune, identity
from weighbridge.tasks.finetune_args import Finetuned
from weighbridge.tasks.ranks import PORT, RankRequest, torchrun_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("WEIGHBRIDGE_TWO_HOSTS"),
        reason="takes half a minute of a processor: WEIGHBRIDGE_TWO_HOSTS=1 runs it",
    ),
]
STORE = "s3://two-nodes/team"


def start(hosts: list[Host], request: RankRequest, variables: dict[str, str]) -> None:
    program, *arguments = torchrun_command(request, f"{hosts[0].address}:{PORT}")
    for host in hosts:
        host.start(Path(sys.executable).with_name(program), *arguments, variables=variables)


def has_said(host: Host, text: str) -> bool:
    return text in (host.folder / "log").read_text()


def said(hosts: list[Host]) -> str:
    return "\n".join((host.folder / "log").read_text()[-2000:] for host in hosts)


def test_two_machines_that_were_killed_end_with_the_losses_of_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := missing():
        pytest.skip(reason)
    with (
        Network(tmp_path, "a", "b") as network,
        Swift(tmp_path / "swift", MACHINE_CACHE, host=network.gateway) as swift,
    ):
        swift.create_bucket("two-nodes")
        variables = {
            **swift.variables,
            "WEIGHBRIDGE_STORE": STORE,
            "WEIGHBRIDGE_CACHE": str(MACHINE_CACHE),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            # Else gloo looks for the host's name, which nobody can tell it here.
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        here = Workspace(Settings(home=tmp_path / "here", cache=MACHINE_CACHE))
        base = stored_model(tiny_model, here)
        data = stored_rows([chat(number) for number in range(48)], here)
        assert here.shared is not None
        for artifact in (base, data):
            here.shared.push(artifact.digest, here.store)

        request = RankRequest(base=base, data=data, args=arguments(nodes=2))
        hosts = list(network.hosts.values())
        start(hosts, request, variables)
        until(lambda: has_said(hosts[0], 'step: {"step": 3'), 240, lambda: said(hosts), poll=0.1)
        for host in hosts:
            host.kill()
        for host in hosts:
            (host.folder / "log").rename(host.folder / "log.killed")
        start(hosts, request, variables)
        until(lambda: has_said(hosts[0], "result: "), 240, lambda: said(hosts), poll=0.1)

        other = Workspace(Settings(home=tmp_path / "other", cache=MACHINE_CACHE))
        inputs = identity(base, data, request.args)
        recorded = other.stages.forecast("finetune", VERSION, Finetuned, inputs).value
        assert recorded is not None
        assert recorded.facts["ranks"] == "2"
        # The second machine got it from the first.
        assert recorded.facts["resumed_from"] == "checkpoint-2"
        assert has_said(hosts[1], "going on after checkpoint-2")
        assert other.store.is_in_reach(recorded.merged)
        one = finetune(base, data, arguments(per_device_train_batch_size=8), here)
        assert len(recorded.losses) == STEPS
        assert [step["loss"] for step in recorded.losses] == pytest.approx(
            [step["loss"] for step in one.losses], rel=1e-4
        )
