"""A real PostgreSQL in a folder of its own, for as long as a test needs it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from weighbridge.core.processes import free_port

PASSWORD = "s3cret-&-odd"
"""As it stands in a URL."""


def programs() -> Path | None:
    """The folder of `postgres` and `initdb`; None where PostgreSQL is not installed."""
    found = shutil.which("postgres") or next(
        map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), None
    )
    return Path(found).resolve().parent if found else None


class Postgresql:
    """A server with one empty database, `weighbridge`; it refuses whoever gives no password."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="wb-postgresql-", dir="/tmp"))

    @property
    def url(self) -> str:
        return f"postgresql://weighbridge:{PASSWORD}@127.0.0.1:{self.port}/weighbridge"

    def __enter__(self) -> "Postgresql":
        found = programs()
        assert found is not None
        # It refuses to run as root.
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        word = self.folder / "password"
        word.write_text(PASSWORD)
        word.chmod(0o644)
        data = self.folder / "data"
        self._run(
            found / "initdb",
            "-D",
            data,
            "-U",
            "weighbridge",
            "--pwfile",
            word,
            "-A",
            "scram-sha-256",
            "-N",
            "-E",
            "UTF8",
        )
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._data, self._control = data, found / "pg_ctl"
        self._run(
            self._control, "-D", data, "-w", "-l", self.folder / "log", "-o", options, "start"
        )
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        create = [
            found / "createdb",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "weighbridge",
            "weighbridge",
        ]
        subprocess.run(create, env=environment, check=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(self._control, "-D", self._data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder)

    def _run(self, *command: object) -> None:
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            **self._as,
        )
        assert done.returncode == 0, done.stdout
