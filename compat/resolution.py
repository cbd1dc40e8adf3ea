"""Which versions the package index would give: as locked, everything at its newest, one package at
its newest.
"""

import re
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from weighbridge.compat.locked_environments import (
    LockedEnvironment,
    bounds_of,
    name_of,
    without_upper_bound,
)
from weighbridge.core.environments import Unresolvable, locks_of, run_uv, torch_lock

TORCH: Final = "torch"
_PIN: Final = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)

Versions = Mapping[str, str]


def pins(text: str) -> dict[str, str]:
    """Return package and version of every line of a lock, or of what a resolver wrote."""
    return {name_of(name): version for name, version in _PIN.findall(text)}


@dataclass(frozen=True)
class Resolver:
    """Resolves one subject's requirements.

    PyTorch stays where its lock has it, unless asked otherwise: another build is gigabytes of CUDA
    libraries.
    """

    environment: LockedEnvironment
    with_torch: bool = False

    @cached_property
    def locked(self) -> dict[str, str]:
        """Return the versions of the lock on this machine. Raises Unavailable without an index."""
        return self._resolve(self.environment.requirements, ())

    @cached_property
    def newest(self) -> dict[str, str]:
        """Return the newest release of every direct dependency, whatever the others say to it."""
        movable = [
            requirement
            for requirement in self.environment.requirements
            if self.with_torch or name_of(requirement) != TORCH
        ]
        return _compile(
            [without_upper_bound(requirement) for requirement in movable], ["--no-deps"]
        )

    def together(self, only: Collection[str] = ()) -> dict[str, str]:
        """Return the newest versions that go together without our upper bounds: of all packages, or
        of `only` these and what they need.

        Raises:
            Unresolvable: nothing goes together.
        """
        return self._resolve(self._lifted(only), only or None)

    def moved(self, targets: Versions) -> dict[str, str]:
        """Return the locked versions, but for these and what they need. Raises Unresolvable."""
        exact = [f"{name}=={version}" for name, version in targets.items()]
        return self._resolve([*self._lifted(), *exact], tuple(targets))

    def why_not(self, name: str, together: Versions) -> str:
        """Return what keeps the newest release of a direct dependency out of `together`.

        Our own upper bounds are lifted, so what is named are packages that do not go together.
        """
        try:
            resolved = self._resolve([*self._lifted(), f"{name}=={self.newest[name]}"], None)
        except Unresolvable as exc:
            note = (
                "; PyTorch is kept as locked"
                if f"{TORCH}==" in exc.wrong and not self.with_torch
                else ""
            )
            return exc.wrong + note
        changes = [
            f"{package} {resolved[package]}"
            for package in together
            if resolved.get(package, together[package]) != together[package]
        ]
        return (
            "it goes only with "
            f"{', '.join(change for change in changes if not change.startswith(f'{name} '))}"
        )

    @cached_property
    def within(self) -> dict[str, str]:
        """Return every package as new as our own bounds let it be."""
        return self._resolve(self.environment.requirements, None)

    def bounds(self, name: str, version: str) -> str:
        """Return what we ask of a direct dependency's version, where that keeps it out."""
        matching = (
            requirement
            for requirement in self.environment.requirements
            if name_of(requirement) == name and self.within.get(name) != version
        )
        return bounds_of(next(matching, ""))

    def _lifted(self, only: Collection[str] = ()) -> list[str]:
        """Return the requirements without upper bounds: of all packages, or only of these."""
        lifted = set(only or self.environment.direct) - ({TORCH} if not self.with_torch else set())
        return [
            without_upper_bound(requirement, self.locked.get(name_of(requirement), ""))
            if name_of(requirement) in lifted
            else requirement
            for requirement in self.environment.requirements
        ]

    def _resolve(
        self, requirements: Sequence[str], upgrade: Collection[str] | None
    ) -> dict[str, str]:
        """Return the versions that go together.

        `upgrade` names the packages that leave their locked version; others do so only where these
        need it. None: all leave it.
        """
        options = (
            ["--upgrade"]
            if upgrade is None
            else [option for name in upgrade for option in ("--upgrade-package", name)]
        )
        # What the lock was made with holds for every other resolution of it.
        if self.environment.overrides:
            options += ["--overrides", str(self.environment.overrides)]
        with tempfile.TemporaryDirectory(prefix="weighbridge-compat-") as folder:
            if pinned := self._pinned():
                (constraints := Path(folder) / "constraints.txt").write_text(
                    "\n".join(pinned) + "\n"
                )
                options += ["--constraints", str(constraints)]
            return _compile(requirements, options, preferences=self.environment.lock.read_text())

    def _pinned(self) -> list[str]:
        """Return the locked versions of PyTorch and of what it alone needs."""
        if self.with_torch or torch_lock() not in locks_of(self.environment.lock):
            return []
        return [f"{name}=={version}" for name, version in pins(torch_lock().read_text()).items()]


def _compile(
    requirements: Sequence[str], more_options: Sequence[str], preferences: str = ""
) -> dict[str, str]:
    """Return the versions that uv resolves for this Python on this machine."""
    with tempfile.TemporaryDirectory(prefix="weighbridge-compat-") as folder:
        spec, out = Path(folder) / "requirements.in", Path(folder) / "requirements.txt"
        spec.write_text("\n".join(requirements) + "\n")
        # uv keeps to the versions in its output file as far as it can: so only what is asked for
        # moves.
        out.write_text(preferences)
        options = [
            "--python",
            sys.executable,
            "--no-header",
            "--no-annotate",
            "--output-file",
            str(out),
            *more_options,
        ]
        run_uv("resolving the newest releases", "pip", "compile", str(spec), *options)
        return pins(out.read_text())
