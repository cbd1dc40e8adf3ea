"""Base job templates of work pools: right for their workers, and without a secret in them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ByteSize

from weighbridge.cli.main import cli
from weighbridge.core.container_layout import HOME, USER
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.flows.pools.base import JobDefaults
from weighbridge.flows.pools.templates import (
    POOL_TYPES,
    PoolType,
    base_job_template,
    set_default,
    with_environment,
)
from weighbridge.flows.prefect_server import lasting_prefect_api

WORKERS = json.loads((Path(__file__).parent / "worker_fields.json").read_text())
"""What the workers' own classes take, noted from the packages named there."""
GIB = 1 << 30
BIG = JobDefaults(
    image="registry/control@sha256:0",
    gpus=2,
    cpus=7.5,
    memory=ByteSize(32 * GIB),
    shared_memory=ByteSize(8 * GIB),
    secrets=("AWS_SECRET_ACCESS_KEY",),
    secret="lab",
)


def placeholders(value: object) -> set[str]:
    return set(re.findall(r"{{ (\w+) }}", json.dumps(value)))


def properties(template: dict[str, Any]) -> dict[str, Any]:
    return dict(template["variables"]["properties"])


def filled(kind: PoolType, defaults: JobDefaults, **values: object) -> dict[str, Any]:
    """What a worker makes of the template, by Prefect's own function."""
    from prefect.utilities.templating import apply_values

    template = base_job_template(kind, defaults)
    known = {
        name: schema["default"]
        for name, schema in properties(template).items()
        if "default" in schema
    }
    return dict(apply_values(template["job_configuration"], {**known, **values}))


def pod(defaults: JobDefaults, **values: object) -> dict[str, Any]:
    job = filled("kubernetes", defaults, **values)["job_manifest"]
    return dict(job["spec"]["template"]["spec"])


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_every_placeholder_is_a_variable_and_every_variable_has_a_place(kind: PoolType) -> None:
    template = base_job_template(kind, BIG)
    assert placeholders(template["job_configuration"]) == set(properties(template))


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_a_worker_takes_all_that_a_template_gives_it(kind: PoolType) -> None:
    template = base_job_template(kind, BIG)
    assert set(template["job_configuration"]) <= set(WORKERS[kind]["job_configuration"])
    # Named as in Prefect's own, so that its documentation holds; or one of ours, which is listed.
    own = set(properties(template)) - set(WORKERS[kind]["variables"])
    assert own == set(WORKERS[kind]["ours"])


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_defaults_are_of_their_variables_types(kind: PoolType) -> None:
    from jsonschema import Draft202012Validator

    for name, schema in properties(base_job_template(kind, BIG)).items():
        if "default" in schema:
            Draft202012Validator(schema).validate(schema["default"])
            assert schema["default"] is not None, name


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_no_value_of_a_secret_is_in_a_template(kind: PoolType) -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "WEIGHBRIDGE_TRACKING_URI": "https://me:hunter2@mlflow.example",
        "WEIGHBRIDGE_STORE": "s3://models/lab",
        "UNRELATED": "hunter2",
    }
    defaults = with_environment(JobDefaults(), environment)
    text = json.dumps(base_job_template(kind, defaults))
    assert "hunter2" not in text
    assert "s3://models/lab" in text
    assert defaults.secrets == ("WEIGHBRIDGE_TRACKING_URI", "AWS_SECRET_ACCESS_KEY")


def test_secrets_are_read_where_each_platform_keeps_them() -> None:
    assert filled("docker", BIG)["env"]["AWS_SECRET_ACCESS_KEY"] == (
        "{{ prefect.blocks.secret.lab-aws-secret-access-key }}"
    )
    [container] = pod(BIG)["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "lab"}}]
    [task] = filled("ecs", BIG)["task_definition"]["containerDefinitions"]
    assert task["secrets"] == [
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": "lab:AWS_SECRET_ACCESS_KEY::"}
    ]


def test_resources_are_written_as_each_platform_writes_them() -> None:
    made = filled("docker", BIG)
    assert made["mem_limit"] == f"{32 * GIB}b"
    created = made["container_create_kwargs"]
    assert created["nano_cpus"] == 7_500_000_000
    assert created["shm_size"] == f"{8 * GIB}b"
    assert created["device_requests"] == [
        {"Driver": "nvidia", "Count": 2, "Capabilities": [["gpu"]]}
    ]
    [container] = pod(BIG)["containers"]
    wanted = {"cpu": "7500m", "memory": str(32 * GIB), "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    task = filled("ecs", BIG)["task_definition"]
    assert (task["cpu"], task["memory"]) == (7680, 32 * 1024)
    [container] = task["containerDefinitions"]
    assert container["resourceRequirements"] == [{"type": "GPU", "value": "2"}]
    assert container["linuxParameters"]["sharedMemorySize"] == 8 * 1024


def test_without_graphics_cards_nobody_is_asked_for_one() -> None:
    plain = JobDefaults()
    assert "device_requests" not in filled("docker", plain)["container_create_kwargs"]
    assert "nvidia" not in json.dumps(pod(plain))
    made = filled("ecs", plain)
    # What Fargate refuses.
    assert "placementConstraints" not in made["task_run_request"]
    [container] = made["task_definition"]["containerDefinitions"]
    assert "sharedMemorySize" not in container["linuxParameters"]
    assert made["task_run_request"]["launchType"] == "FARGATE"


@pytest.mark.parametrize("defaults", [BIG, JobDefaults(image="mine", secrets=("HF_TOKEN",))])
def test_amazons_own_models_take_task_and_request(defaults: JobDefaults) -> None:
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    made = filled("ecs", defaults, command="prefect flow-run execute", network_configuration={})
    task, request = made["task_definition"], made["task_run_request"]
    # As the worker writes them: sizes as text, the command as words, variables and tags as lists.
    overrides = request["overrides"]
    for sized in (task, overrides):
        sized.update({size: str(sized[size]) for size in ("cpu", "memory") if size in sized})
    overrides["containerOverrides"][0].update(command=["prefect"], environment=[])
    service = get_session().get_service_model("ecs")
    for operation, parameters in (
        ("RegisterTaskDefinition", task),
        ("RunTask", {**request, "taskDefinition": "arn"}),
    ):
        shape = service.operation_model(operation).input_shape
        assert not ParamValidator().validate(parameters, shape).has_errors()


def test_a_pod_has_no_rights_and_no_neighbour_of_its_kind() -> None:
    made = pod(JobDefaults())
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["runAsUser"] == USER
    assert made["automountServiceAccountToken"] is False
    [container] = made["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # Where it writes, a volume is mounted.
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) <= {volume["name"] for volume in made["volumes"]}
    assert {"/tmp", "/dev/shm"} < set(mounts)
    [rule] = made["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    job = filled("kubernetes", JobDefaults())["job_manifest"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    wanted = rule["labelSelector"]["matchLabels"]
    assert wanted.items() <= labels.items()
    # Prefect's worker writes these over, which would make the rule one about nobody.
    assert not {f"app.kubernetes.io/{of}" for of in ("part-of", "managed-by", "version")} & {
        *wanted
    }


def test_a_process_becomes_prefects_engine_itself_out_of_reach_of_the_workers_terminal(
    tmp_path: Path,
) -> None:
    engine = tmp_path / "prefect" / "engine.py"
    engine.parent.mkdir()
    (engine.parent / "__init__.py").touch()
    engine.write_text("import os, sys; print(__name__, sys.argv[1:], os.getsid(0) == os.getpid())")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        shlex.split(filled("process", JobDefaults())["command"]),
        env={**os.environ, "PATH": str(Path(sys.executable).parent), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout == "__main__ [] True\n", done.stderr


def test_kubernetes_ends_a_job_that_never_begins_and_a_recipe_says_when() -> None:
    """By the Job: a pod that no node has taken is nobody else's to end."""
    job = filled("kubernetes", BIG)["job_manifest"]["spec"]
    assert job["activeDeadlineSeconds"] == 7 * 24 * 3600
    assert "activeDeadlineSeconds" not in job["template"]["spec"]
    longer = filled("kubernetes", BIG, active_deadline_seconds=2_592_000)["job_manifest"]["spec"]
    assert longer["activeDeadlineSeconds"] == 2_592_000


def test_what_a_recipe_says_stands_above_the_defaults() -> None:
    [container] = pod(BIG, memory="1Gi", image="mine")["containers"]
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert container["image"] == "mine"


def test_a_variable_that_the_template_lacks_is_refused() -> None:
    template = base_job_template("docker", JobDefaults())
    set_default(template, "network_mode", "host")
    assert properties(template)["network_mode"]["default"] == "host"
    with pytest.raises(BadInput, match="did you mean 'network_mode'"):
        set_default(template, "network_node", "host")


def test_what_differs_between_two_templates_is_named() -> None:
    from weighbridge.flows.pools.apply import differences

    before = base_job_template("docker", JobDefaults(image="one"))
    after = base_job_template("docker", JobDefaults(image="two"))
    assert list(differences(before, before)) == []
    assert list(differences(before, after)) == ["variables.properties.image.default: one -> two"]


@pytest.fixture
def _nobody_told_of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", "/nowhere")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["pools", *arguments])


@pytest.mark.usefixtures("_nobody_told_of_prefect", "workspace")
def test_without_a_prefect_that_stays_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = invoke("apply", "--type", "docker").exception
    assert isinstance(refused, Unavailable)
    assert "weighbridge up" in str(refused)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with pytest.raises(Unavailable, match="reaching Prefect's API"):
        lasting_prefect_api(Settings(), "looking").__enter__()


def test_an_unknown_type_and_a_size_that_is_none_are_refused() -> None:
    refused = invoke("template", "--type", "dokcer").exception
    assert isinstance(refused, BadInput)
    assert "did you mean 'docker'" in str(refused)
    refused = invoke("template", "--type", "docker", "--memory", "much").exception
    assert isinstance(refused, BadInput)
    assert "memory" in str(refused)


def test_a_template_is_printed_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_STORE", "s3://models/lab")
    done = invoke("template", "--type", "docker", "--image", "mine", "--set", 'networks=["lab"]')
    made = properties(json.loads(done.output))
    assert made["networks"]["default"] == ["lab"]
    assert made["env"]["default"]["WEIGHBRIDGE_STORE"] == "s3://models/lab"


@pytest.mark.parametrize("kind", ["docker", "kubernetes", "ecs"])
def test_what_a_worker_hands_on_of_its_own_machine_is_not_used_in_a_container(
    kind: PoolType,
) -> None:
    env = properties(base_job_template(kind, JobDefaults()))["env"]["default"]
    assert env["PREFECT_HOME"].startswith(HOME)
