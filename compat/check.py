"""The whole check: resolve, install, run the contracts, and find the packages that break them."""

import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from weighbridge.compat.attribution import BrokenContract, attribute
from weighbridge.compat.locked_environments import Contract, LockedEnvironment
from weighbridge.compat.report import (
    Change,
    CheckedEnvironment,
    CompatReport,
    ContractResult,
    Finding,
)
from weighbridge.compat.resolution import TORCH, Resolver, Versions, pins
from weighbridge.compat.throwaway import cache_without, folder_of_a_check, run_contract, throw_away
from weighbridge.compat.trials import INSTALLS, Clock, Trials, is_packages_fault
from weighbridge.core.environments import Unresolvable, torch_lock
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.plugins import suggestion
from weighbridge.core.progress import track

logger = logging.getLogger(__name__)

MAKE_MODEL = "weighbridge.tasks.upgrade_contracts:a_model_for_an_engine"


@dataclass(frozen=True)
class Options:
    """How far a check goes."""

    only: tuple[str, ...] = ()
    """Packages that move; none: all."""
    with_torch: bool = False
    contract_seconds: float = 900.0
    """Most that one contract may take; an idle machine needs a minute at most."""
    minutes: float = 60.0
    """After them nothing new is begun, and the report says what is missing."""
    run: bool = True
    """Off: resolve alone, install nothing."""


def check(environments: Sequence[LockedEnvironment], options: Options, cache: Path) -> CompatReport:
    """Check every subject against the newest releases of what it needs.

    Raises:
        BadInput: `options.only` names a package that nothing here asks for.
        Unavailable: the package index cannot be reached, or the disk is too full.
    """
    _require_known(environments, options.only)
    clock, done = Clock(60 * options.minutes), []
    with (
        folder_of_a_check(cache) as folder,
        track("checking the newest releases", len(environments), "environments") as update,
    ):
        for number, environment in enumerate(environments):
            update(number)
            if not options.only or set(options.only) & set(environment.direct):
                done.append(_EnvironmentCheck(environment, options, clock, folder, cache).check())
    locked_torch = pins(torch_lock().read_text())[TORCH]
    return CompatReport(
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        pytorch="PyTorch was updated, too."
        if options.with_torch
        else f"PyTorch is kept as locked ({locked_torch}).",
        environments=done,
    )


def _require_known(environments: Sequence[LockedEnvironment], only: Sequence[str]) -> None:
    direct_packages = sorted({name for environment in environments for name in environment.direct})
    for name in only:
        if name not in direct_packages:
            raise BadInput(
                f"checking '{name}'",
                "no environment asks for it directly",
                suggestion(name, direct_packages),
            )


class _EnvironmentCheck:
    """The check of one locked environment."""

    def __init__(
        self,
        environment: LockedEnvironment,
        options: Options,
        clock: Clock,
        folder: Path,
        cache: Path,
    ) -> None:
        self._environment, self._options, self._clock = environment, options, clock
        self._folder, self._cache = folder, cache
        self._resolver = Resolver(environment, options.with_torch)
        self._findings: list[Finding] = []
        self._results: list[ContractResult] = []

    def check(self) -> CheckedEnvironment:
        started = time.monotonic()
        logger.info("%s: resolving", self._environment.name)
        try:
            together = self._resolver.together(self._options.only)
        except Unavailable as exc:
            if not is_packages_fault(exc):
                raise
            self._findings.append(
                Finding(kind="breaks", packages={}, contract="it resolves", why=exc.wrong)
            )
            return self._result("nothing goes together", {}, started)
        held_back = self._held_back(together)
        self._findings += held_back
        # Nothing would move: it is the locked versions that the tests run with.
        if together == self._resolver.locked and not held_back:
            return self._result("as locked", together, started)
        why_not = self._why_nothing_is_run()
        if why_not is not None:
            self._findings.append(Finding(kind="not run", packages={}, why=why_not))
            return self._result(why_not, together, started)
        if self._environment.unserved:
            self._findings.append(
                Finding(
                    kind="not run",
                    packages={},
                    contract="it serves",
                    why=self._environment.unserved,
                )
            )
        self._try_out(together, [name for finding in held_back for name in finding.packages])
        return self._result("checked", together, started)

    def _why_nothing_is_run(self) -> str | None:
        if not self._options.run:
            return "resolved alone"
        if not self._environment.contracts:
            return "it has no contracts: resolved alone"
        return self._environment.left_out

    def _result(self, state: str, together: Versions, started: float) -> CheckedEnvironment:
        return CheckedEnvironment(
            environment=self._environment.name,
            state=state,
            changes=self._changes(together),
            results=self._results,
            findings=self._findings,
            seconds=round(time.monotonic() - started, 1),
        )

    def _changes(self, together: Versions) -> list[Change]:
        locked, direct = self._resolver.locked, self._environment.direct
        return [
            Change(
                package=name,
                locked=locked.get(name, ""),
                newest=together.get(name, ""),
                direct=name in direct,
                bounds=self._resolver.bounds(name, together.get(name, ""))
                if name in direct
                else "",
            )
            for name in sorted({*locked, *together})
            if together and locked.get(name) != together.get(name)
        ]

    def _held_back(self, together: Versions) -> list[Finding]:
        """Return the direct dependencies whose newest release is not among what goes together."""
        packages = self._options.only or self._environment.direct
        findings = []
        for name in packages:
            newest = self._resolver.newest.get(name)
            if newest and newest != together.get(name):
                why = self._resolver.why_not(name, together)
                locked_version = self._resolver.locked.get(name, "")
                findings.append(
                    Finding(kind="held back", packages={name: (locked_version, newest)}, why=why)
                )
        return findings

    def _try_out(self, together: Versions, held_back: Sequence[str]) -> None:
        """Install and run: everything at its newest, then each package that this held back, as far
        as it goes.
        """
        with throw_away(self._environment, self._folder, self._cache) as throwaway:
            trials = Trials(
                throwaway, self._clock, self._options.contract_seconds, self._preparation()
            )
            errors = self._round(
                trials, together, "everything at its newest", list(self._environment.contracts)
            )
            # Asked only when something breaks: it moves the environment back to the locked
            # versions.
            broken_already = self._stale(trials, errors) if errors else {}
            broken = {name: error for name, error in errors.items() if name not in broken_already}
            if broken:
                self._attribute(trials, broken, together)
            for name in held_back:
                self._alone(trials, name, broken_already)

    def _stale(self, trials: Trials, errors: Mapping[str, str]) -> dict[str, str]:
        """Return the contracts that break with the locked versions too: no update is to blame for
        them.
        """
        broken_already = trials.run(
            self._resolver.locked,
            [contract for contract in self._environment.contracts if contract.name in errors],
        )
        for name, error in broken_already.items():
            self._findings.append(
                Finding(kind="broken already", packages={}, contract=name, why=error)
            )
        return broken_already

    def _round(
        self, trials: Trials, versions: Versions, description: str, contracts: Sequence[Contract]
    ) -> dict[str, str]:
        """Run contracts under these versions, keep their results, and give the errors of those that
        break.
        """
        ran = trials.results(versions, contracts)
        self._results += [result.model_copy(update={"versions": description}) for result in ran]
        not_run = {contract.name for contract in contracts} - {result.contract for result in ran}
        if not_run and all(result.contract != INSTALLS for result in ran):
            why = f"no time was left for: {', '.join(sorted(not_run))} ({description})"
            self._findings.append(Finding(kind="not run", packages={}, why=why))
        return {result.contract: result.error for result in ran if not result.holds}

    def _attribute(self, trials: Trials, broken: Mapping[str, str], together: Versions) -> None:
        locked = self._resolver.locked
        moved = [name for name in together if together[name] != locked.get(name)]
        direct = [name for name in self._environment.direct if name in moved]
        contracts = [
            contract for contract in self._environment.contracts if contract.name in broken
        ]

        def trial(names: Sequence[str]) -> Mapping[str, str]:
            logger.info(
                "%s: %s alone",
                self._environment.name,
                ", ".join(f"{name} {together[name]}" for name in names),
            )
            # It may need the others: then the set that is searched for has them, too.
            with suppress(Unresolvable):
                return trials.run(
                    self._resolver.moved({name: together[name] for name in names}), contracts
                )
            return {}

        for blame in attribute(broken, direct, moved, trial):
            self._findings.append(self._broken(blame, together))

    def _broken(self, blame: BrokenContract, versions: Versions) -> Finding:
        locked = self._resolver.locked
        names = blame.packages or tuple(
            name for name in versions if versions[name] != locked.get(name)
        )
        moved: Versions = {}
        # Resolved again: what had to move along with these may be to blame, and is shown.
        if blame.packages:
            moved = self._resolver.moved({name: versions[name] for name in names})
        along = {
            name for name in {*locked, *moved} if moved and locked.get(name) != moved.get(name)
        } - set(names)
        return Finding(
            kind="breaks",
            packages={name: (locked.get(name, ""), versions[name]) for name in names},
            contract=blame.contract,
            why=blame.error,
            with_it={name: (locked.get(name, ""), moved.get(name, "")) for name in sorted(along)},
        )

    def _alone(self, trials: Trials, name: str, broken_already: Mapping[str, str]) -> None:
        """Run the contracts with one package at its newest that all others together held back."""
        newest = self._resolver.newest[name]
        try:
            versions = self._resolver.moved({name: newest})
        except Unresolvable:
            return  # the finding that it is held back says why
        contracts = [
            unbroken
            for unbroken in self._environment.contracts
            if unbroken.name not in broken_already
        ]
        for contract, error in self._round(
            trials, versions, f"{name} {newest} alone", contracts
        ).items():
            self._findings.append(self._broken(BrokenContract(contract, (name,), error), versions))

    def _preparation(self) -> Callable[[], str | None]:
        """Return what makes a model for the contracts, and says what went wrong; None: nothing."""
        environment, folder = self._environment, self._folder

        def prepare() -> str | None:
            if environment.serves is None or (folder / "models" / environment.serves).exists():
                return None
            logger.info("%s: making a model for it, with the locked environments", environment.name)
            # Not with the releases on trial: what breaks the making has a contract of its own, and
            # would be counted against the engine here.
            view = (
                folder / "locked"
                if (folder / "locked").exists()
                else cache_without(self._cache, folder / "locked")
            )
            contract = Contract("a model to serve", MAKE_MODEL, (environment.serves,))
            result = run_contract(
                contract,
                Path(sys.executable),
                folder / "models",
                view,
                self._options.contract_seconds,
            )
            return None if result.holds else result.error

        return prepare
