"""Template of Docker pools: jobs are containers on the machine of their worker."""

from typing import Any

from weighbridge.core.container_layout import CACHE, HOME
from weighbridge.flows.pools.base import (
    COMMON,
    JobDefaults,
    Template,
    base_template,
    block_name,
    bytes_text,
    common,
    image_variable,
    in_containers,
    value_of,
    variable,
)


def docker_template(defaults: JobDefaults) -> Template:
    """Return the template: secrets are blocks of Prefect, read by the worker."""
    blocks = {
        name: "{{ prefect.blocks.secret." + block_name(defaults.secret, name) + " }}"
        for name in defaults.secrets
    }
    direct = {
        "image_pull_policy": {
            **variable("string", "When to pull the image.", "IfNotPresent"),
            "enum": ["IfNotPresent", "Always", "IfPossible", "Never"],
        },
        "networks": variable("array", "Docker networks to be connected to."),
        "network_mode": variable("string", "Such as host; not together with `networks`."),
        # Removed at once, it could not be asked for its status: the worker would not see it die.
        "auto_remove": variable("boolean", "Remove a container that has ended.", False),
        "volumes": variable(
            "array",
            "What is mounted. What a machine has fetched is kept for its next job.",
            [f"weighbridge-home:{HOME}", f"weighbridge-cache:{CACHE}"],
        ),
        "stream_output": variable("boolean", "Show the output in the worker's.", True),
        "mem_limit": variable(
            "string", "Most memory, such as 32g.", bytes_text(defaults.memory, "b")
        ),
        "privileged": variable("boolean", "Give the container the machine's rights.", False),
    }
    created = {
        "shm_size": variable(
            "string", "Size of /dev/shm.", bytes_text(defaults.shared_memory, "b")
        ),
        "nano_cpus": variable(
            "integer",
            "Most of the processor, in billionths of a core.",
            round(defaults.cpus * 1e9) if defaults.cpus else None,
        ),
        "device_requests": variable(
            "array", "Devices, as Docker's API names them.", _gpus(defaults.gpus)
        ),
    }
    configuration = {
        **{name: value_of(name) for name in (*COMMON, "image", *direct)},
        "container_create_kwargs": {
            **{name: value_of(name) for name in created},
            # So that processes whose parent has ended are waited for.
            "init": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
        },
    }
    variables = {
        **common(in_containers({**defaults.env, **blocks})),
        "image": image_variable(defaults),
        **direct,
        **created,
    }
    return base_template(configuration, variables)


def _gpus(count: int) -> list[dict[str, Any]] | None:
    if not count:
        return None
    return [{"Driver": "nvidia", "Count": count, "Capabilities": [["gpu"]]}]
