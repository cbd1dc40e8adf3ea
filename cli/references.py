"""How commands are told which version of a model is meant: NAME VERSION or NAME@VERSION."""

import click


def model_and_version(name: str, version: str | None, default: str = "") -> tuple[str, str]:
    """Return a model's name and the number or alias that was given either way.

    Args:
        name: As it was typed: the model's name, perhaps with `@` and a version.
        version: As it was typed after it, if it was.
        default: What is meant where neither names a version; empty: one has to be named.
    """
    model, _, after_at = name.partition("@")
    if version and after_at:
        raise click.UsageError(f"the version is there twice: {after_at} and {version}")
    which = version or after_at or default
    if not which:
        raise click.UsageError(f"which version of {model}? see: weighbridge models {model}")
    return model, which
