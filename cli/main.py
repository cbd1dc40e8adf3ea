"""The `weighbridge` command. Every subcommand is imported when it is called, not before."""

import errno
import importlib
import logging
import sys
from typing import ClassVar

import click

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.proxies import keep_loopback_direct

FULL = 8 << 20
"""Bytes of room with which databases and logs cannot be written any more."""

_INTERRUPTED = {
    "run": "interrupted; what is finished is kept: the same command goes on from there",
    "promote": "interrupted; where the rollout is: weighbridge status",
    "rollback": "interrupted; where the rollout is: weighbridge status",
    "up": "interrupted; run the same command again to go on",
}
"""What is said after Ctrl-C, by command."""


class LazyGroup(click.Group):
    """Finds a subcommand by name in a table, and imports its module only to run or describe it."""

    table: ClassVar[dict[str, tuple[str, str]]] = {
        "init": ("weighbridge.cli.recipes:init", "Write a commented starter recipe."),
        "plan": (
            "weighbridge.cli.recipes:plan",
            "Say what would run, what would be reused and why; change nothing.",
        ),
        "run": ("weighbridge.cli.run:run", "Run a recipe: from base model to served endpoint."),
        "schema": (
            "weighbridge.cli.recipes:schema",
            "Print the JSON schema of recipes, for editors.",
        ),
        "render": (
            "weighbridge.cli.render:render",
            "Write a target's Kubernetes manifests, for Argo CD and Flux.",
        ),
        "up": (
            "weighbridge.cli.platform:up",
            "Bring up the platform: Prefect, MLflow, deployer, worker, gateway.",
        ),
        "status": (
            "weighbridge.cli.platform:status",
            "Say how each service and each target is: desired and actual version, since when.",
        ),
        "down": (
            "weighbridge.cli.platform:down",
            "Stop the platform and what serves; leave no process behind.",
        ),
        "logs": (
            "weighbridge.cli.platform:logs",
            "Show the last lines of a service's or a target's log, and follow it.",
        ),
        "promote": (
            "weighbridge.cli.rollouts:promote",
            "Let a version be champion, and wait until it serves.",
        ),
        "rollback": ("weighbridge.cli.rollouts:rollback", "Let the version before serve again."),
        "history": (
            "weighbridge.cli.rollouts:history",
            "List the rollouts at a target, and what became of them.",
        ),
        "pause": ("weighbridge.cli.rollouts:pause", "Hold the rollout at a target."),
        "resume": ("weighbridge.cli.rollouts:resume", "Let it go on."),
        "abort": ("weighbridge.cli.rollouts:abort", "Roll it back."),
        "ask": ("weighbridge.cli.ask:ask", "Stream one answer from a live endpoint."),
        "models": ("weighbridge.cli.models:models", "List registered models and their versions."),
        "show": ("weighbridge.cli.models:show", "Show one version: lineage, tags, measurements."),
        "torchrun": (
            "weighbridge.cli.torchrun:torchrun",
            "Print what trains a recipe's fine-tune on several machines.",
        ),
        "pools": (
            "weighbridge.cli.pools:pools",
            "Apply work pools in Prefect that carry out stages elsewhere.",
        ),
        "image": (
            "weighbridge.cli.images:image",
            "Build container images of the control plane and of engines.",
        ),
        "engines": ("weighbridge.cli.engines:engines", "List engines; install their environments."),
        "prune": (
            "weighbridge.cli.prune:prune",
            "Say which weights and environments nothing needs any more; remove them.",
        ),
        "compat": (
            "weighbridge.cli.compat:compat",
            "Say what the newest release of every dependency would break.",
        ),
        "doctor": (
            "weighbridge.cli.doctor:doctor",
            "Say what is missing on this machine, and how to get it.",
        ),
    }

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, attribute = self.table[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            from weighbridge.core.plugins import suggestion

            raise click.UsageError(
                f"no command '{args[0]}'; {suggestion(args[0], list(self.table))}", context
            )
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that `--help` imports no subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", is_flag=True, help="Show tracebacks and debug logs.")
@click.version_option(package_name="weighbridge")
def cli(verbose: bool) -> None:
    """Takes a language model from base weights to a served endpoint.

    A recipe (one YAML file) goes in; candidates are made, weighed on the engine that would serve
    them, and the winner serves behind an OpenAI-compatible address.
    """
    logging.getLogger("weighbridge").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.raiseExceptions = (
        verbose  # a log that cannot be written must not bury the one line that says why
    )


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error becomes one line on stderr and an exit code.

    0: well; 1: unexpected; 2: bad input; 3: a gate failed; 4: a component is missing or down; 130:
    interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    verbose = "--verbose" in arguments
    keep_loopback_direct()
    try:
        # --verbose may stand anywhere on the line.
        cli.main(
            ["--verbose"] * verbose
            + [argument for argument in arguments if argument != "--verbose"],
            # Else click would end the process itself, with exit codes of its own.
            standalone_mode=False,
        )
    except (click.exceptions.Abort, KeyboardInterrupt):
        # click makes the first of the second. 130 is what shells give a program that SIGINT ended.
        command = next((word for word in arguments if not word.startswith("-")), "")
        click.echo(_INTERRUPTED.get(command, "interrupted"), err=True)
        sys.exit(130)
    except click.ClickException as exc:
        exc.show()
        sys.exit(2)
    except WeighbridgeError as exc:
        if verbose:
            raise
        click.echo(f"{click.style('error', fg='red')}: {exc}", err=True)
        sys.exit(exc.exit_code)
    except Exception as exc:
        if verbose:
            raise
        _exit_where_the_disk_is_full(exc)
        click.echo(f"unexpected {type(exc).__name__}: {exc}; --verbose shows where", err=True)
        sys.exit(1)


def _exit_where_the_disk_is_full(exc: BaseException) -> None:
    """End the program with one line where the disk is full.

    A full disk shows as whatever failed to be written first, in a database or a server of ours.
    """
    from weighbridge.core.disk import free_bytes
    from weighbridge.core.errors import Unavailable
    from weighbridge.core.settings import Settings

    home = Settings().home
    # Not by the error alone: SQLite and the servers say of a full disk whatever they failed at.
    if free_bytes(home) > FULL and getattr(exc, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        return
    full = Unavailable(
        "writing", "the disk is full", f"make room on the disk of {home}, then run again"
    )
    click.echo(f"{click.style('error', fg='red')}: {full}", err=True)
    sys.exit(full.exit_code)


if __name__ == "__main__":
    main()
