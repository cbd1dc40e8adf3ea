"""Where a stage works: settings, the artifact store and the record of finished stages."""

from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.core.settings import Settings
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.stage_cache import StageCache
from weighbridge.core.store import Store


@dataclass(frozen=True)
class Workspace:
    """Handed to every stage; made once per process from the settings."""

    settings: Settings = field(default_factory=Settings)
    records: Path | None = None
    """Where finished stages are noted; None: with all others of the home."""

    @property
    def shared(self) -> SharedStore | None:
        """What other homes share with this one; None where the settings name no such store."""
        return SharedStore.at(self.settings.store) if self.settings.store else None

    @property
    def store(self) -> Store:
        return Store(self.settings.home / "store", self.shared)

    @property
    def stages(self) -> StageCache:
        # Records of their own are those of a release that is repeated: it is to measure anew.
        if self.records:
            return StageCache(self.records, self.store)
        return StageCache(self.settings.home / "stages", self.store, self.shared)

    @property
    def checks(self) -> StageCache:
        """What was found good before, told by content alone: kept for all homes on this machine."""
        return StageCache(self.settings.cache / "checks", self.store)
