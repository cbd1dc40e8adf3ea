"""Template of process pools: jobs are processes beside their worker, with its environment."""

from weighbridge.flows.pools.base import (
    JobDefaults,
    Template,
    base_template,
    common,
    value_of,
    variable,
)


def process_template(defaults: JobDefaults) -> Template:
    """Return the template: what a worker gives its own processes already is left to it."""
    variables = {
        **common(defaults.env),
        "stream_output": variable("boolean", "Show the output in the worker's.", True),
        "working_dir": variable("string", "Working directory; empty: one of its own."),
    }
    return base_template({name: value_of(name) for name in variables}, variables)
