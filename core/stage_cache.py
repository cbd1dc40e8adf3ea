"""Results of finished stages, kept by the digest of inputs, arguments and stage version."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from weighbridge.core.artifact import Artifact, artifacts_in
from weighbridge.core.files import replace_text
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.store import Store

R = TypeVar("R")


class AddedLater:
    """Mark of a field that does not count while it has its default: results that were recorded
    before the field was there go on being found.
    """


_SHORT = 30
"""Characters of a value that a sentence on what changed tells."""


@dataclass(frozen=True)
class StageOutcome(Generic[R]):
    """What a stage gave, and whether it had to run for it."""

    value: R
    reused: bool
    why: str
    seconds: float


@dataclass(frozen=True)
class Forecast(Generic[R]):
    """What would happen if the stage ran now."""

    value: R | None
    why: str


def canonical(value: Any) -> Any:
    """Return JSON that identifies `value`: artifacts count by digest and format, never by where
    they lie.
    """
    if isinstance(value, Artifact):
        return {"artifact": value.digest, "format": value.format}
    # What identifies a stage is written into its record, in clear.
    if isinstance(value, SecretStr):
        raise TypeError("a secret cannot identify a stage")
    if isinstance(value, BaseModel):
        # Not `model_dump`, which would count an artifact inside by its path, too. Defaults are
        # among the fields, so a new default is a change.
        return {
            name: canonical(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if not (AddedLater in field.metadata and getattr(value, name) == field.default)
        }
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple | set | frozenset):
        items = [canonical(item) for item in value]
        # By what they look like: a set may hold what cannot be compared.
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot identify a stage")


def fingerprint(value: Any) -> str:
    """Return the hex sha256 of what `canonical` says identifies `value`."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _changes(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two canonical values differ, and both values there.

    As far up as a person would name it: another plugin or a list of another length is one change.
    """
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.get("kind") == now.get("kind"):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), f"{path}.{key}".removeprefix("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    else:
        yield path, before, now


def _difference(before: Any, now: Any) -> str:
    """Return the first few things in which two canonical values differ, for a person."""
    changes = dict.fromkeys(_named(*change) for change in _changes(before, now))
    shown = list(changes)[:3]
    return ", ".join(shown) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def _named(path: str, before: Any, now: Any) -> str:
    name = re.sub(r"\.(artifact|format)$", "", path.removeprefix("args."))
    if name == path.removeprefix("args.") and _is_short(before) and _is_short(now):
        return f"{name} is {_shown(now)}, was {_shown(before)}"
    return f"{name} changed"


def _is_short(value: Any) -> bool:
    return value is None or (
        isinstance(value, bool | int | float | str) and len(str(value)) <= _SHORT
    )


def _shown(value: Any) -> str:
    return "open" if value is None else json.dumps(value, ensure_ascii=False)


class StageCache:
    """Results of finished stages, one JSON file each, under `root/<stage>/<key>.json`.

    With a shared store, those of every home that has it: what one has finished, none computes.
    """

    def __init__(self, root: Path, store: Store, shared: SharedStore | None = None) -> None:
        self.root = root
        self.store = store
        self.shared = shared

    def run(
        self,
        stage: str,
        version: int,
        result: type[R],
        inputs: Mapping[str, Any],
        compute: Callable[[], R],
        keep: Callable[[R], bool] = lambda _: True,
    ) -> StageOutcome[R]:
        """Return the recorded result if it still holds; else compute it and record it whole.

        `inputs` must hold everything the result depends on. A value that `keep` refuses is returned
        but not recorded, so that it is tried again. Two processes that ask for the same stage at
        once compute it once.

        Raises:
            Unavailable: a stage's result could not be shared; it is kept here, and shared by the
                next run.
        """
        identity = {"stage": stage, "version": version, "inputs": canonical(inputs)}
        record = self._record(stage, identity)
        record.parent.mkdir(parents=True, exist_ok=True)
        # Held while it is computed, so that a second process waits for the result and then reuses
        # it.
        with FileLock(record.with_suffix(".lock")):
            forecast = self._look(stage, record, identity, TypeAdapter(result))
            if forecast.value is not None:
                self._share(stage, record, forecast.value)
                return StageOutcome(forecast.value, reused=True, why=forecast.why, seconds=0.0)
            started = time.monotonic()
            value = compute()
            seconds = time.monotonic() - started
            if keep(value):
                self._write(
                    record, identity, TypeAdapter(result).dump_python(value, mode="json"), seconds
                )
                self._share(stage, record, value)
        return StageOutcome(value, reused=False, why=forecast.why, seconds=seconds)

    def forecast(
        self, stage: str, version: int, result: type[R], inputs: Mapping[str, Any]
    ) -> Forecast[R]:
        """Return what `run` would do, without doing it."""
        identity = {"stage": stage, "version": version, "inputs": canonical(inputs)}
        return self._look(stage, self._record(stage, identity), identity, TypeAdapter(result))

    def newest(self, stage: str, result: type[R], about: str) -> R | None:
        """Return the newest result of a stage whose record names `about`, such as a digest."""
        for record in reversed(self._records(stage)):
            text = record.read_text()
            if about in text:
                try:
                    found = TypeAdapter(result).validate_python(json.loads(text)["value"])
                    return self.store.bind(found)
                except (ValueError, KeyError):
                    return None
        return None

    def _records(self, stage: str) -> list[Path]:
        """Return the records of a stage, the oldest first."""
        return sorted((self.root / stage).glob("*.json"), key=lambda path: path.stat().st_mtime)

    def _record(self, stage: str, identity: Mapping[str, Any]) -> Path:
        return self.root / stage / f"{fingerprint(identity)}.json"

    def _look(
        self, stage: str, record: Path, identity: Mapping[str, Any], adapter: TypeAdapter[R]
    ) -> Forecast[R]:
        text = self._text(stage, record)
        if text is None:
            return Forecast(None, self._why_missing(stage, identity))
        try:
            saved = json.loads(text)
            value = self.store.bind(adapter.validate_python(saved["value"]))
        except (ValueError, KeyError, ValidationError):
            return Forecast(None, "the record of the last run cannot be read")
        for artifact in artifacts_in(value):
            if not self.store.is_in_reach(artifact):
                return Forecast(
                    None, f"{artifact.format} artifact {artifact.short} is gone or damaged"
                )
        return Forecast(value, f"same inputs and arguments as on {saved['finished']}")

    def _text(self, stage: str, record: Path) -> str | None:
        """Return the record of this home, else of the shared store; None where there is none."""
        try:
            return record.read_text()
        except FileNotFoundError:
            return self.shared.record(stage, record.stem) if self.shared else None

    def _share(self, stage: str, record: Path, value: Any) -> None:
        """Let other homes find a result, its artifacts first; keep one of theirs here."""
        if self.shared is None:
            return
        if not record.exists():
            if text := self.shared.record(stage, record.stem):
                replace_text(record, text)
        elif not self.shared.has_record(stage, record.stem):
            for artifact in artifacts_in(value):
                self.shared.push(artifact.digest, self.store)
            self.shared.share_record(stage, record.stem, record.read_text())

    def _why_missing(self, stage: str, identity: Mapping[str, Any]) -> str:
        """Return what differs from the newest record of the stage, whoever made that."""
        records = self._records(stage)
        if not records:
            return "not run before"
        previous = json.loads(records[-1].read_text())["identity"]
        if previous["version"] != identity["version"]:
            return (
                f"the stage itself changed (version {previous['version']} to {identity['version']})"
            )
        return _difference(previous["inputs"], identity["inputs"])

    def _write(self, record: Path, identity: Mapping[str, Any], value: Any, seconds: float) -> None:
        finished = time.strftime("%Y-%m-%d %H:%M:%S")
        text = json.dumps(
            {
                "identity": identity,
                "value": value,
                "seconds": round(seconds, 3),
                "finished": finished,
            },
            indent=1,
        )
        replace_text(record, text)
