"""Template of ECS pools: jobs are tasks, on Fargate, or on EC2 where they have graphics cards."""

from typing import Any, Final

from weighbridge.core.container_layout import USER
from weighbridge.flows.pools.base import (
    START_SECONDS,
    JobDefaults,
    Template,
    base_template,
    block_schema,
    common,
    image_variable,
    in_containers,
    value_of,
    variable,
)

_MIB: Final = 1 << 20


def ecs_template(defaults: JobDefaults) -> Template:
    """Return the template: secrets are read by ECS, keys of one secret of AWS."""
    gpus = [{"type": "GPU", "value": str(defaults.gpus)}] if defaults.gpus else None
    # Fargate has no graphics cards, and takes neither rules of placement nor a size of /dev/shm.
    on_ec2 = defaults.gpus > 0
    shared = defaults.shared_memory // _MIB if on_ec2 else None
    text = "string"
    variables = {
        **common(in_containers(defaults.env)),
        "image": image_variable(defaults),
        "cpu": variable(
            "integer",
            "Units of a processor: 1024 for each core.",
            round(defaults.cpus * 1024) if defaults.cpus else None,
        ),
        "memory": variable(
            "integer", "Memory in MiB.", defaults.memory // _MIB if defaults.memory else None
        ),
        "secrets": variable(
            "array",
            "Variables that ECS reads of a secret, each as {name: …, valueFrom: …}.",
            [
                {"name": name, "valueFrom": f"{defaults.secret}:{name}::"}
                for name in defaults.secrets
            ],
        ),
        "resource_requirements": variable("array", "Graphics cards.", gpus),
        "shared_memory_size": variable("integer", "Size of /dev/shm in MiB, on EC2.", shared),
        "placement_constraints": variable(
            "array", "Where to run, on EC2.", [{"type": "distinctInstance"}] if on_ec2 else None
        ),
        "launch_type": {
            **variable(text, "Where tasks run.", "EC2" if on_ec2 else "FARGATE"),
            "enum": ["FARGATE", "EC2", "EXTERNAL", "FARGATE_SPOT"],
        },
        "capacity_provider_strategy": variable("array", "In place of the launch type."),
        "ephemeral_storage": variable("object", "On Fargate: {sizeInGiB: 21 to 200}."),
        "cluster": variable(text, "Name or ARN of the cluster; empty: the default one."),
        "family": variable(text, "Family of the task definition.", "weighbridge-stage"),
        "container_name": variable(text, "Name of the container.", "stage"),
        "task_definition_arn": variable(text, "A task definition in place of this one."),
        "task_role_arn": variable(text, "Role of the running task: to read and write the store."),
        "execution_role_arn": variable(
            text, "Role that pulls the image, reads the secrets and writes the log."
        ),
        "vpc_id": variable(text, "VPC of the task; empty: the default one."),
        "network_configuration": variable("object", "awsvpcConfiguration, in place of the VPC."),
        "configure_cloudwatch_logs": variable(
            "boolean", "Send the output to CloudWatch; wants an execution role."
        ),
        "cloudwatch_logs_options": variable("object", "Further options of that."),
        "cloudwatch_logs_prefix": variable(text, "What names of its streams begin with."),
        "stream_output": variable("boolean", "Show the output in the worker's.", False),
        "task_start_timeout_seconds": variable(
            "integer", "Seconds within which a task must run.", START_SECONDS
        ),
        "task_watch_poll_interval": variable("number", "Seconds between two looks.", 5.0),
        "auto_deregister_task_definition": variable(
            "boolean", "Deregister what was registered for a task.", False
        ),
        # By these, what the worker itself logs in to Prefect with is no text in a task.
        "prefect_api_key_secret_arn": variable(text, "ARN of a secret: Prefect Cloud's key."),
        "prefect_api_auth_string_secret_arn": variable(
            text, "ARN of a secret: the login of Prefect's own server, as user:password."
        ),
        "match_latest_revision_in_family": variable(
            "boolean", "Use the family's last task definition where it is the same.", True
        ),
        "aws_credentials": {
            "title": "AWS credentials",
            "description": "Block with credentials for ECS; empty: those of the worker.",
            "allOf": [{"$ref": "#/definitions/AwsCredentials"}],
        },
    }
    in_requests = {"image", "cpu", "memory", "secrets", "resource_requirements", "family"}
    in_requests |= {"shared_memory_size", "placement_constraints", "launch_type"}
    in_requests |= {"capacity_provider_strategy", "ephemeral_storage", "task_definition_arn"}
    in_requests |= {"task_role_arn", "execution_role_arn"}
    configuration = {
        **{name: value_of(name) for name in variables if name not in in_requests},
        "task_definition": _task_definition(),
        "task_run_request": _task_run_request(),
    }
    return base_template(configuration, variables, {"AwsCredentials": _AWS_CREDENTIALS})


def _task_definition() -> dict[str, Any]:
    container = {
        "name": value_of("container_name"),
        "image": value_of("image"),
        "user": str(USER),
        "secrets": value_of("secrets"),
        "resourceRequirements": value_of("resource_requirements"),
        "linuxParameters": {
            "initProcessEnabled": True,
            "sharedMemorySize": value_of("shared_memory_size"),
        },
        # The most that Fargate gives.
        "stopTimeout": 120,
    }
    return {
        "family": value_of("family"),
        "cpu": value_of("cpu"),
        "memory": value_of("memory"),
        "executionRoleArn": value_of("execution_role_arn"),
        "ephemeralStorage": value_of("ephemeral_storage"),
        "containerDefinitions": [container],
    }


def _task_run_request() -> dict[str, Any]:
    container = {
        "name": value_of("container_name"),
        "command": value_of("command"),
        "environment": value_of("env"),
        "cpu": value_of("cpu"),
        "memory": value_of("memory"),
    }
    return {
        "cluster": value_of("cluster"),
        "launchType": value_of("launch_type"),
        "capacityProviderStrategy": value_of("capacity_provider_strategy"),
        "placementConstraints": value_of("placement_constraints"),
        "taskDefinition": value_of("task_definition_arn"),
        "tags": value_of("labels"),
        "overrides": {
            "cpu": value_of("cpu"),
            "memory": value_of("memory"),
            "taskRoleArn": value_of("task_role_arn"),
            "containerOverrides": [container],
        },
    }


_AWS_CREDENTIALS: Final = block_schema(
    "AwsCredentials",
    "aws-credentials",
    {
        "region_name": {"type": "string"},
        "aws_access_key_id": {"type": "string"},
        "aws_secret_access_key": {"type": "string", "format": "password", "writeOnly": True},
    },
)
