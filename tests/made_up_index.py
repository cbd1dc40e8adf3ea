"""A made-up package index, and an environment that asks for packages of it."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.wheels import make_wheel
from weighbridge.compat.locked_environments import Contract, LockedEnvironment

IMPORTS = "its imports"


@dataclass
class Index:
    """A folder of wheels, which is all that uv may look at."""

    folder: Path
    wheels: Path
    _lines: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, name: str, version: str, source: str = "", requires: Sequence[str] = ()) -> None:
        self._lines[name, version] = make_wheel(
            self.wheels, name, version, source=source, requires=requires
        )

    def add_broken_source(self, name: str, version: str, metadata: str) -> None:
        """A source distribution that cannot be built."""
        files = {
            "PKG-INFO": f"Metadata-Version: {metadata}\nName: {name}\nVersion: {version}\n",
            "pyproject.toml": "[build-system]\nrequires = []\n"
            'build-backend = "broken"\nbackend-path = ["."]\n',
            "broken.py": "raise RuntimeError('no compiler')\n",
        }
        with tarfile.open(self.wheels / f"{name}-{version}.tar.gz", "w:gz") as archive:
            for path, text in files.items():
                about = tarfile.TarInfo(f"{name}-{version}/{path}")
                about.size = len(text)
                archive.addfile(about, io.BytesIO(text.encode()))

    def environment(
        self, requirements: Sequence[str], locked: dict[str, str], uses: dict[str, str]
    ) -> LockedEnvironment:
        """`uses`: what a contract of this name imports."""
        lock = self.folder / "made_up.lock"
        lock.write_text("".join(self._lines[pin] for pin in locked.items()))
        contracts = tuple(self._contract(name, source) for name, source in uses.items())
        return LockedEnvironment("made_up", lock, tuple(requirements), contracts)

    def _contract(self, name: str, source: str) -> Contract:
        path = self.folder / f"{name.replace(' ', '_')}.py"
        path.write_text(source)
        return Contract(name, "weighbridge.core.contract_runner:imports", (str(path),))
