"""Template of process pools: jobs are processes beside their worker, with its environment."""

from typing import Final

from weighbridge.flows.pools.base import (
    JobDefaults,
    Template,
    base_template,
    common,
    value_of,
    variable,
)

COMMAND: Final = "python -m weighbridge.flows.stage_process"
"""Of the Python on the worker's PATH: one template is for machines that have it anywhere."""


def process_template(defaults: JobDefaults) -> Template:
    """Return the template: what a worker gives its own processes already is left to it."""
    variables = {
        **common(defaults.env, COMMAND),
        "stream_output": variable("boolean", "Show the output in the worker's.", True),
        "working_dir": variable("string", "Working directory; empty: one of its own."),
    }
    return base_template({name: value_of(name) for name in variables}, variables)
