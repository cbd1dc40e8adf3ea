"""The registry as the other layers use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.registry import bindings, ledger, measurements, runs, versions, webhooks
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
class Shown:
    """One version with all that is known about it."""

    version: Version
    lineage: list[Version]
    """Base first, the version itself last."""
    made_of_it: list[Version]
    measurements: dict[str, str]
    """Candidate label to the measurement's JSON."""


@dataclass(frozen=True)
class Registry:
    """MLflow, seen through what Weighbridge needs of it. Every change can be made again without
    effect.
    """

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

    # Runs

    def release(
        self, recipe: str, inputs: Any, *, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> MlflowRun:
        """The run of one release: the one begun with the same inputs, else a new one. Marks killed
        runs first.
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
        """The run of one stage below its release: the one with the same inputs, whoever began it,
        else a new one.
        """
        run = runs.begin(
            self.connection, release.experiment, stage, inputs, name=name or stage, parent=release
        )
        if params and not run.done:
            run.log_params(params)
        return run

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
        """The version of this artifact in this role with this parent, registered if it is not yet.

        `label` is what people call it (a variant's label), `tags` come on version and logged model
        (recipe, recipe_digest, optimizer, …), `params` are the settings it was made with.
        """
        proposal = versions.Proposal(
            name, role, artifact, parent, label or role, tags or {}, params or {}
        )
        return versions.register(self.connection, run, proposal)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Tags on a version: `bento`, `bento_digest`, …"""
        versions.tag(self.connection, version, tags)

    def champion(self, name: str) -> Version | None:
        return versions.by_alias(self.connection, name, CHAMPION)

    def challenger(self, name: str) -> Version | None:
        return versions.by_alias(self.connection, name, CHALLENGER)

    def set_challenger(self, version: Version, candidate: str) -> None:
        """The winner of a weighing; `candidate` is the label of the engine and variant that won."""
        versions.tag(self.connection, version, {CANDIDATE: candidate})
        versions.set_alias(self.connection, version, CHALLENGER)

    def promote(self, version: Version) -> None:
        """Let `champion` name this version, if it does not yet."""
        now = self.champion(version.name)
        if now is None or now.version != version.version:
            versions.set_alias(self.connection, version, CHAMPION)

    def restore_champion(self, tried: Version, before: Version | None) -> None:
        """Let `champion` name `before` again (nobody, where it is None), unless it was moved on
        from `tried`.
        """
        now = self.champion(tried.name)
        if now is None or now.version != tried.version:
            return
        if before is None:
            versions.delete_alias(self.connection, tried.name, CHAMPION)
        else:
            versions.set_alias(self.connection, before, CHAMPION)

    def names(self) -> list[str]:
        """Every registered model."""
        with self.connection.doing("listing models in MLflow"):
            return sorted(
                model.name
                for model in self.connection.client.search_registered_models(max_results=1000)
            )

    def versions(self, name: str) -> list[Version]:
        """Every version of a model, newest first. Raises BadInput when there is no such model."""
        return versions.listed(self.connection, name)

    def version(self, name: str, which: str = CHAMPION) -> Version:
        """A version by its number or alias.

        Raises:
            BadInput: there is no such model, version or alias.
        """
        if which.isdigit():
            return versions.get(self.connection, name, which)
        found = versions.by_alias(self.connection, name, which)
        if found is None:
            raise BadInput(
                f"looking for '{name}@{which}'",
                "MLflow has no such model or alias",
                "see: weighbridge models",
            )
        return found

    def show(self, name: str, which: str = CHAMPION) -> Shown:
        """A version, where it comes from, what was made of it and what the scale said. Raises
        BadInput.
        """
        version = self.version(name, which)
        all_versions = {item.version: item for item in self.versions(name)}
        version = all_versions.get(version.version, version)
        chain = [
            all_versions.get(item.version, item)
            for item in versions.lineage(self.connection, version)
        ]
        children = [item for item in all_versions.values() if item.parent == version.version]
        found = {
            label: self.measurement_of(version, label) for label in measurements.labels(version)
        }
        return Shown(
            version, chain, children, {label: text for label, text in found.items() if text}
        )

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
        """Put a candidate's measurement on its logged model and in the run; returns the logged
        model's id.
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
        """The JSON of a version's measurement: of the label, else of the candidate that won with
        it.
        """
        return measurements.read(self.connection, version, label)

    def fetch(self, version: Version, store: Store) -> Artifact:
        """A version's artifact, back in the store, its digest proved.

        Raises:
            Unavailable: MLflow does not hold its files, or holds others.
        """
        return versions.restore(self.connection, version, store)

    # Targets

    def desired_version(self, model: str) -> Version | None:
        """Return the version that should serve: the champion.

        None where no version has the alias, or where the one that had it is gone.
        """
        return self.champion(model)

    def bind(self, binding: Binding) -> None:
        """Let a target serve the champion of this model, and of no other. Raises BadInput."""
        bindings.put(self.connection, binding)

    def bindings(self) -> list[Binding]:
        """Every target and the model it serves."""
        return bindings.listed(self.connection)

    def ensure_webhook(self, url: str, secret: str) -> None:
        """MLflow tells `url` of every alias that moves, signed with `secret`; made, or repaired, if
        need be.

        Raises:
            Unavailable: MLflow is no server.
        """
        webhooks.ensure(self.connection, url, secret, self._webhooks)

    def note(self, version: Version, target: str, figures: Mapping[str, float], step: int) -> None:
        """Figures of a version while it serves at a target, on its logged model; `step` is their
        time in seconds.
        """
        name = f"{target}: {version.name} {version.version}"
        inputs = {"target": target, "name": version.name, "version": version.version}
        run = runs.begin(self.connection, MONITORING, "monitor", inputs, name=name, tags=inputs)
        run.log_metrics(figures, model_id=version.model_id or None, step=step)
        run.finish()

    # Ledger

    def mirror(self, entries: Sequence[LedgerEntry]) -> None:
        """Bring a rollout's lines, which are kept on its machine, into MLflow. The same ones again
        change nothing.
        """
        ledger.mirror(self.connection, entries)

    def history(self, target: str, limit: int = 50) -> list[RolloutRecord]:
        """The rollouts of a target, newest first."""
        return ledger.history(self.connection, target, limit)
