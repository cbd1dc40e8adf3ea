"""The registry as the other layers use it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.registry import (
    bindings,
    homes,
    ledger,
    logged_models,
    measurements,
    registration,
    runs,
    versions,
    webhooks,
)
from weighbridge.registry import connection as connections
from weighbridge.registry.bindings import Binding
from weighbridge.registry.connection import Connection
from weighbridge.registry.ledger import RolloutRecord
from weighbridge.registry.ledger_entries import LedgerEntry
from weighbridge.registry.measurements import MeasuredFigures
from weighbridge.registry.runs import MlflowRun
from weighbridge.registry.versions import CANDIDATE, CHALLENGER, CHAMPION, Role, Version

MONITORING = "weighbridge.monitoring"
"""Experiment: what was seen of versions while they served."""


@dataclass(frozen=True)
class VersionDetails:
    """One version with all that is known about it."""

    version: Version
    lineage: list[Version]
    """Base first, the version itself last."""
    children: list[Version]
    """Versions that were made of it."""
    measurements: dict[str, str]
    """Candidate label to the measurement's JSON."""


@dataclass(frozen=True)
class Registry:
    """What Weighbridge needs of MLflow. Every change can be made again without effect."""

    connection: Connection
    _webhooks: webhooks.Known = field(default_factory=dict)

    @classmethod
    def connect(cls, settings: Settings) -> "Registry":
        """Connect to the MLflow that the settings name: a server, or SQLite under home (made on
        first use).

        Raises:
            Unavailable: the server does not answer, or the database cannot be opened.
        """
        return cls(connections.connect(settings))

    # Homes

    def join(self, doing: str) -> str:
        """Be among the homes that work with this MLflow until this process ends.

        Args:
            doing: what is begun, for the message.

        Raises:
            BadInput: another home works with it, and nothing keeps the two apart.
        """
        return homes.join(self.connection, doing)

    def joined(self, doing: str) -> AbstractContextManager[None]:
        """Be so for as long as a block lasts. Raises BadInput as `join` does."""
        return homes.joined(self.connection, doing)

    def refuse_other_homes(self, doing: str) -> None:
        """Raise BadInput where `join` would, without a trace in MLflow."""
        homes.refuse_others(self.connection, doing)

    # Runs

    def release(
        self, recipe: str, inputs: Any, *, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> MlflowRun:
        """Begin the run of one release, or go on with the one that has the same inputs.

        Runs whose process was killed are marked so first.
        """
        experiment = connections.checked_name(recipe)
        runs.mark_killed(self.connection, experiment)
        run = runs.begin(
            self.connection, experiment, "release", inputs, name=f"release {recipe}", tags=tags
        )
        run.log_params(params)
        return run

    def stage(
        self,
        release: MlflowRun,
        stage: str,
        inputs: Any,
        *,
        name: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> MlflowRun:
        """Begin the run of one stage below its release, or go on with the one that has the same
        inputs, whoever began that.
        """
        run = runs.begin(
            self.connection, release.experiment, stage, inputs, name=name or stage, parent=release
        )
        if params and not run.done:
            run.log_params(params)
        return run

    def text_of_run(self, run_id: str, name: str) -> str:
        """Return a text that was kept with a run.

        Raises:
            Unavailable: there is no such run or text, or it cannot be fetched.
        """
        return runs.text_of(self.connection, run_id, name)

    # Versions

    def register(
        self,
        name: str,
        role: Role,
        artifact: Artifact,
        *,
        run: MlflowRun,
        parent: Version | None = None,
        label: str = "",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Version:
        """Register an artifact as a version in this role with this parent, if it is not yet.

        Args:
            name: Of the registered model.
            role: What it is.
            artifact: Its files.
            run: What made it.
            parent: The version it was made of; None for a base model.
            label: What people call it, such as a variant's label.
            tags: Of version and logged model: recipe, recipe_digest, optimizer, …
            params: The settings it was made with.
        """
        spec = registration.VersionSpec(
            name, role, artifact, parent, label or role, tags or {}, params or {}
        )
        return registration.register(self.connection, run, spec)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags on a version: `bento`, `bento_digest`, …"""
        versions.tag(self.connection, version, tags)

    def champion(self, name: str) -> Version | None:
        return versions.by_alias(self.connection, name, CHAMPION)

    def challenger(self, name: str) -> Version | None:
        return versions.by_alias(self.connection, name, CHALLENGER)

    def set_challenger(self, version: Version, candidate: str) -> None:
        """Let `challenger` name the winner of a weighing.

        Args:
            version: The winner.
            candidate: The label of the engine and variant that won.
        """
        # The tag first: whoever follows the alias finds it there.
        versions.tag(self.connection, version, {CANDIDATE: candidate})
        versions.set_alias(self.connection, version, CHALLENGER)

    def promote(self, version: Version) -> None:
        """Let `champion` name this version, if it does not yet."""
        champion = self.champion(version.name)
        # Setting an alias to what it names already would fire MLflow's webhook once more.
        if champion is None or champion.version != version.version:
            versions.set_alias(self.connection, version, CHAMPION)

    def restore_champion(self, tried: Version, before: Version | None) -> None:
        """Let `champion` name `before` again (nobody, where it is None), unless it was moved on
        from `tried`.
        """
        champion = self.champion(tried.name)
        if champion is None or champion.version != tried.version:
            return
        if before is None:
            versions.delete_alias(self.connection, tried.name, CHAMPION)
        else:
            versions.set_alias(self.connection, before, CHAMPION)

    def misspelt_champions(self, name: str) -> dict[str, str]:
        """Return aliases that look as if they were meant to be `champion`, and what they name."""
        return versions.misspelt_champions(self.connection, name)

    def names(self) -> list[str]:
        """Return the name of every registered model."""
        with self.connection.doing("listing models in MLflow"):
            return sorted(
                model.name
                # MLflow gives a thousand at once, and refuses to be asked for more.
                for model in self.connection.client.search_registered_models(max_results=1000)
            )

    def versions(self, name: str) -> list[Version]:
        """Return every version of a model, newest first.

        Raises:
            BadInput: there is no such model.
        """
        return versions.all_versions(self.connection, name)

    def version(self, name: str, which: str = CHAMPION) -> Version:
        """Return a version by its number or alias.

        Raises:
            BadInput: there is no such model, version or alias.
        """
        if which.isdigit():
            return versions.get(self.connection, name, which)
        version = versions.by_alias(self.connection, name, which)
        if version is None:
            raise BadInput(
                f"looking for '{name}@{which}'",
                "MLflow has no such model or alias",
                "see: weighbridge models",
            )
        return version

    def show(self, name: str, which: str = CHAMPION) -> VersionDetails:
        """Return a version with its lineage, what was made of it, and its measurements.

        Raises:
            BadInput: there is no such model, version or alias.
        """
        version = self.version(name, which)
        # Those of a listing have their aliases, which one that was asked for alone has not.
        by_number = {listed.version: listed for listed in self.versions(name)}
        version = by_number.get(version.version, version)
        lineage = [
            by_number.get(ancestor.version, ancestor)
            for ancestor in versions.lineage(self.connection, version)
        ]
        children = [child for child in by_number.values() if child.parent == version.version]
        documents = {
            label: document
            for label in measurements.labels(version)
            if (document := self.measurement_of(version, label))
        }
        return VersionDetails(version, lineage, children, documents)

    # Measurements

    def record_measurement(
        self,
        version: Version,
        label: str,
        *,
        run: MlflowRun,
        document: str,
        figures: Sequence[MeasuredFigures],
        params: Mapping[str, str] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> str:
        """Put a candidate's measurement on its logged model and in the run.

        Returns:
            The logged model's id.
        """
        return measurements.record(
            self.connection,
            run,
            version,
            label,
            document=document,
            figures=figures,
            params=params or {},
            files=files or {},
        )

    def measurement_of(self, version: Version, label: str = "") -> str | None:
        """Return the JSON of a version's measurement, or None where there is none.

        It is that of the label, else of the candidate that won with it.
        """
        return measurements.read(self.connection, version, label)

    def fetch(self, version: Version, store: Store) -> Artifact:
        """Bring a version's artifact back into the store, and prove its digest.

        Raises:
            Unavailable: MLflow does not hold its files, or holds others.
        """
        return versions.restore(self.connection, version, store)

    def files_here(self, version: Version) -> list[Path]:
        """Return the artifact's files that MLflow keeps of a version on this machine."""
        if not version.model_id:
            return []
        with self.connection.doing(f"looking for the files of version {version.version} in MLflow"):
            folder = logged_models.folder_here(self.connection, version.model_id)
        return list(logged_models.own_files(folder)) if folder else []

    def remove_files(self, version: Version) -> None:
        """Remove a version's files on this machine from MLflow, and note that on the version.

        Its figures, its lineage and its tags stay.
        """
        with self.connection.doing(f"removing the files of version {version.version} from MLflow"):
            if logged_models.remove_files(self.connection, version.model_id):
                day = time.strftime("%Y-%m-%d")
                versions.tag(self.connection, version, {versions.REMOVED: day})

    # Targets

    def desired_version(self, model: str) -> Version | None:
        """Return the version that should serve: the champion.

        None where no version has the alias, or where the one that had it is gone.
        """
        return self.champion(model)

    def bind(self, binding: Binding) -> Binding:
        """Let a target serve the champion of this model, and of no other.

        Returns:
            The binding with the time of its arguments, which is later than that of any before.

        Raises:
            BadInput: the deploy arguments are too long.
        """
        return bindings.bind(self.connection, binding)

    def bindings(self) -> list[Binding]:
        """Return every target and the model it serves."""
        return bindings.all_bindings(self.connection)

    def binding(self, target: str) -> Binding | None:
        """Return a target and the model it serves; None where no model claims it."""
        return next((one for one in self.bindings() if one.target == target), None)

    def ensure_webhook(self, url: str, secret: str) -> None:
        """Have MLflow tell `url` of every alias that moves, signed with `secret`.

        Raises:
            Unavailable: MLflow is no server.
        """
        webhooks.ensure(self.connection, url, secret, self._webhooks)

    def log_monitoring(
        self, version: Version, target: str, figures: Mapping[str, float], step: int
    ) -> None:
        """Log figures of a version while it serves at a target, on its logged model.

        Args:
            version: What serves.
            target: Where.
            figures: What was seen.
            step: When: Unix time, in seconds.
        """
        name = f"{target}: {version.name} {version.version}"
        inputs = {"target": target, "name": version.name, "version": version.version}
        run = runs.begin(self.connection, MONITORING, "monitor", inputs, name=name, tags=inputs)
        run.log_metrics(figures, model_id=version.model_id or None, step=step)
        run.finish()

    # Ledger

    def mirror(self, entries: Sequence[LedgerEntry]) -> None:
        """Write a rollout's lines, which are kept on its machine, into MLflow.

        The same ones again change nothing.
        """
        ledger.mirror(self.connection, entries)

    def history(self, target: str, limit: int = 50) -> list[RolloutRecord]:
        """Return the rollouts of a target, newest first."""
        return ledger.history(self.connection, target, limit)
