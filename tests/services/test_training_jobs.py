"""A fine-tune over several machines as a manifest: how many, where they meet, what they may."""

from tests.tasks.test_ranks import request_of
from weighbridge.flows.pools.base import JobDefaults
from weighbridge.services.training_jobs import job_set, train_job
from weighbridge.tasks.ranks import RANK_MODULE

PODS = JobDefaults(image="mine", env={"WEIGHBRIDGE_STORE": "s3://a/b"}, secrets=("KEY",), gpus=4)
REQUEST = request_of(nodes=2, processes_per_node=4)


def test_a_jobset_names_its_first_pod_as_the_place_to_meet() -> None:
    made = job_set(REQUEST, PODS)
    [replicated] = made["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    name = made["metadata"]["name"]
    first = f"{name}-{replicated['name']}-0-0.{name}"
    assert f"--rdzv-endpoint={first}:29400" in container["command"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert {"name": "WEIGHBRIDGE_STORE", "value": "s3://a/b"} in container["env"]
    # A name of Kubernetes', and short enough for the names that are made of it.
    assert len(f"{first}".partition(".")[0]) <= 63


def test_a_trainjob_leaves_the_meeting_to_its_runtime() -> None:
    trainer = train_job(REQUEST, PODS)["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["command"][:3] == ["torchrun", "-m", RANK_MODULE]
    assert not [word for word in trainer["command"] if "rdzv" in word]
    secret = {"secretKeyRef": {"name": "weighbridge", "key": "KEY"}}
    assert {"name": "KEY", "valueFrom": secret} in trainer["env"]
