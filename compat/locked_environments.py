"""What is checked: environments of this tree, their direct requirements, and the contracts that
hold in each.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from weighbridge.core import plugins
from weighbridge.core.contract_runner import used
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.paths import PACKAGE
from weighbridge.serving.engines.base import Engine, engine_class

CONTROL: Final = "control"
LAYERS: Final = (
    "core",
    "serving",
    "registry",
    "tasks",
    "compat",
    "conformance",
    "rollout",
    "configs",
    "flows",
    "deployer",
    "services",
    "cli",
    "plugins",
)
OURS_IN_A_BENTO: Final = (
    "serving/bento_candidate.py",
    "serving/openai_client.py",
    "serving/service.py",
    "serving/passthrough.py",
    "core/environments.py",
)
"""What an engine's environment imports of ours in a Bento, and what imports others' libraries in
it.
"""
ENGINES: Final = PACKAGE / "serving" / "engines"
_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*([^;]*)(;.*)?")


@dataclass(frozen=True)
class Contract:
    """One thing that must go on working: a plain function of this tree, run in a process of its
    own.
    """

    name: str
    call: str
    """`module:function`, as `weighbridge.core.contract_runner` takes it."""
    arguments: tuple[str, ...] = ()
    inside: bool = True
    """Run by the throw-away environment's own Python; else by ours, which finds that environment in
    its cache.
    """


@dataclass(frozen=True)
class LockedEnvironment:
    """One environment."""

    name: str
    lock: Path
    requirements: tuple[str, ...]
    contracts: tuple[Contract, ...] = ()
    serves: str | None = None
    """The engine whose environment it is: its contracts need a model."""
    left_out: str | None = None
    """Why its contracts cannot be run here; its versions are resolved all the same."""
    unserved: str | None = None
    """Why no engine is started in it here; its other contracts are run."""
    overrides: Path | None = None
    """What stands above what packages ask for."""

    @property
    def direct(self) -> tuple[str, ...]:
        """Return the names of the packages it asks for."""
        return tuple(name_of(requirement) for requirement in self.requirements)


def name_of(requirement: str) -> str:
    """Return the package that a requirement is about, as package indexes write it."""
    match = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def bounds_of(requirement: str) -> str:
    """Return what a requirement asks of the version, `<0.151`; empty where any will do."""
    match = _NAME.match(requirement)
    return (match[3] or "").strip() if match else ""


def without_upper_bound(requirement: str, floor: str = "") -> str:
    """Return a requirement without its upper bound, and with `floor` as its lower one.

    Without a lower bound, a resolver may choose an older version to make others go together.
    """
    match = _NAME.match(requirement)
    assert match is not None, requirement
    # Without a local part, as in `2.13.0+cpu`: PEP 440 takes none behind `>=`.
    at_least = f">={floor.partition('+')[0]}" if floor else ""
    return f"{match[1]}{match[2] or ''}{at_least}{' ' + match[4] if match[4] else ''}"


def locked_environments(names: Sequence[str] = ()) -> list[LockedEnvironment]:
    """Return every environment of the tree and of installed plugins, or those of these names.

    Raises:
        BadInput: there is no such environment.
    """
    every_environment = list(_all())
    every_name = [environment.name for environment in every_environment]
    for name in names:
        if name not in every_name:
            raise BadInput(
                f"checking the environment '{name}'",
                "there is none",
                plugins.suggestion(name, every_name),
            )
    return [
        environment for environment in every_environment if not names or environment.name in names
    ]


def _all() -> Iterator[LockedEnvironment]:
    yield _control()
    # Resolved: a checkout's modules are found through the links of src/weighbridge.
    seen_locks: set[Path] = set()
    for name in plugins.names("engine"):
        engine = engine_class(name)
        for device, lock in engine.locks.items():
            if lock.resolve() not in seen_locks:
                seen_locks.add(lock.resolve())
                yield from _engine(engine, device, lock)
    for name in plugins.names("optimizer"):
        lock = plugins.load("optimizer", name).lock
        if lock is not None and lock.resolve() not in seen_locks:
            seen_locks.add(lock.resolve())
            makes = Contract(
                "it makes a model",
                "weighbridge.tasks.upgrade_contracts:an_optimizer_makes",
                (name,),
                inside=False,
            )
            yield from _from_file(lock, contracts=(makes,))
    for folder in ("serving", "tasks"):
        for spec in sorted((PACKAGE / folder).rglob("*.in")):
            if spec.with_suffix(".lock") not in seen_locks:
                yield from _from_file(spec.with_suffix(".lock"))


def _control() -> LockedEnvironment:
    # What is needed for an extra alone is not in the lock.
    requirements = [one for one in metadata.requires("weighbridge") or () if "extra ==" not in one]
    contracts = (
        Contract("its imports", "weighbridge.core.contract_runner:imports", tuple(_own_code())),
        Contract("a flow runs", "weighbridge.flows.upgrade_contracts:a_flow_runs"),
        Contract(
            "the names inside Prefect",
            "weighbridge.flows.upgrade_contracts:the_names_inside_prefect_are_there",
        ),
        Contract(
            "a schedule is planned", "weighbridge.flows.upgrade_contracts:a_schedule_is_planned"
        ),
        Contract(
            "the run forms are made", "weighbridge.flows.upgrade_contracts:the_run_forms_are_made"
        ),
        Contract(
            "a version, its alias and a webhook",
            "weighbridge.registry.upgrade_contracts:a_version_is_registered",
        ),
        Contract(
            "the names inside MLflow",
            "weighbridge.registry.upgrade_contracts:the_names_inside_mlflow_are_there",
        ),
        Contract("a fine-tune", "weighbridge.tasks.upgrade_contracts:a_model_is_fine_tuned"),
        Contract("the metrics", "weighbridge.tasks.upgrade_contracts:answers_are_scored"),
        Contract("an S3 client", "weighbridge.tasks.upgrade_contracts:a_bucket_is_asked"),
        Contract(
            "a supervised program", "weighbridge.serving.upgrade_contracts:a_program_is_supervised"
        ),
    )
    return LockedEnvironment(
        CONTROL, PACKAGE / "locks" / "control.lock", tuple(requirements), contracts
    )


def _own_code() -> Iterator[str]:
    """Yield our modules that run in the control plane, not those that import what only an engine's
    environment has.
    """
    for path in (file for layer in LAYERS for file in sorted((PACKAGE / layer).rglob("*.py"))):
        tops = {module.partition(".")[0] for module, _ in used(path.read_text())}
        if all(top in sys.modules or find_spec(top) for top in tops):
            yield path.relative_to(PACKAGE).as_posix()


def _engine(plugin: type[Engine], device: str, lock: Path) -> Iterator[LockedEnvironment]:
    engine = plugin(plugin.Args(kind=plugin.name))
    runs_here = engine.device() == device and (
        device == "cpu" or shutil.which("nvidia-smi") is not None
    )
    left_out = None if runs_here else f"{engine.name} on {device} cannot be run here"
    launchers = (
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(ENGINES.glob(f"{engine.name}_server.py"))
    )
    contracts = [
        Contract(
            "its imports",
            "weighbridge.core.contract_runner:imports",
            (*OURS_IN_A_BENTO, *launchers),
        )
    ]
    problem = _cannot_start(engine) if runs_here else None
    if not problem:
        contracts += [
            Contract(
                "it serves",
                "weighbridge.serving.upgrade_contracts:an_engine_answers",
                (engine.name,),
                inside=False,
            ),
            Contract(
                "a Bento of it serves",
                "weighbridge.serving.upgrade_contracts:a_bento_answers",
                (engine.name,),
                inside=False,
            ),
        ]
    yield from _from_file(
        lock,
        contracts=tuple(contracts),
        serves=None if problem else engine.name,
        left_out=left_out,
        unserved=problem,
    )


def _cannot_start(engine: Engine) -> str | None:
    """Return why an engine cannot run here whatever its environment holds: a program that nobody
    has installed.
    """
    try:
        engine.check()
        # Made, and not run: some engines look for their program only then.
        with suppress(BadInput):  # there is no model yet
            engine.command(Path("model"), "127.0.0.1", 1, Path("python"))
    except Unavailable as exc:
        return str(exc)
    return None


def _from_file(
    lock: Path,
    *,
    contracts: tuple[Contract, ...] = (),
    serves: str | None = None,
    left_out: str | None = None,
    unserved: str | None = None,
) -> Iterator[LockedEnvironment]:
    """Yield the environment whose requirements lie beside its lock; none where a plugin's package
    leaves them out.
    """
    spec, overrides = lock.with_suffix(".in"), lock.with_suffix(".overrides")
    if not spec.exists():
        return
    lines = (line.partition(" #")[0].strip() for line in spec.read_text().splitlines())
    yield LockedEnvironment(
        lock.stem,
        lock,
        tuple(line for line in lines if line and not line.startswith("#")),
        contracts,
        serves,
        left_out,
        unserved,
        overrides if overrides.exists() else None,
    )
