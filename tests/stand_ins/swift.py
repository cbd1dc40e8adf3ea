"""A real S3 server: OpenStack Swift with its S3 API, one node, in an environment of its own.

::

    with Swift(folder, cache) as swift:
        os.environ.update(swift.variables)      # AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …
        swift.create_bucket("models")

It checks signatures and checksums, and takes multipart uploads, as S3 itself does.

All workers of a test run have one, which the first of them starts that needs it: `shared`.
``python -m tests.stand_ins.swift FOLDER CACHE OWNER`` serves it until the owner, a process, ends.
"""

import contextlib
import getpass
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import httpx
from filelock import FileLock

from weighbridge.core.environments import Environment, ensure
from weighbridge.core.processes import Process, free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = Path(__file__).with_name("swift.lock")
ACCESS_KEY: Final = "test:tester"
SECRET_KEY: Final = "testing"
REGION: Final = "us-east-1"
STORAGE: Final = ("account", "container", "object")
READY_WITHIN: Final = 120.0
ATTEMPTS: Final = 3
"""Swift cannot choose a free port itself: another program may take the one found before Swift does.
"""
PIPELINE: Final = (
    "catch_errors gatekeeper proxy-logging cache listing_formats bulk s3api tempauth copy slo dlo"
    " versioned_writes symlink proxy-server"
)
PROXY: Final = """
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
dns_compliant_bucket_names = false
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:bulk]
use = egg:swift#bulk
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:symlink]
use = egg:swift#symlink
"""
POLICY: Final = """
[swift-hash]
swift_hash_path_suffix = stand-in
[storage-policy:0]
name = gold
default = yes
[swift-constraints]
max_header_size = 16384
"""


class Swift:
    """Proxy, account, container and object server on free ports of 127.0.0.1; ends with its block.

    Start it from a thread that outlives it (see weighbridge.core.processes.Process).
    """

    def __init__(self, folder: Path, cache: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self._host = host
        self._cache = cache
        self._processes = contextlib.ExitStack()
        self.url = ""

    @property
    def variables(self) -> Mapping[str, str]:
        """What boto3 and every other S3 client reads from the environment."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self) -> "S3Client":
        """A client that needs nothing from the environment."""
        import boto3

        session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
        client: S3Client = session.client("s3", endpoint_url=self.url)
        return client

    def create_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def __enter__(self) -> "Swift":
        environment = ensure(LOCK, self._cache)
        for attempt in range(ATTEMPTS):
            folder = self.folder / str(attempt)
            try:
                self._start(environment, folder)
                return self
            except Exception:
                self._processes.close()
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._processes.close()

    def _start(self, environment: Environment, folder: Path) -> None:
        (folder / "devices" / "d1").mkdir(parents=True)
        ports = {name: free_port() for name in (*STORAGE, "proxy")}
        (folder / "swift.conf").write_text(POLICY)
        _make_rings(environment, folder, {name: ports[name] for name in STORAGE})
        for name in STORAGE:
            pipeline = (
                f"[pipeline:main]\npipeline = {name}-server\n"
                f"[app:{name}-server]\nuse = egg:swift#{name}\n"
            )
            (folder / f"{name}-server.conf").write_text(_defaults(folder, ports[name]) + pipeline)
        proxy = f"[pipeline:main]\npipeline = {PIPELINE}\n{PROXY}"
        settings = _defaults(folder, ports["proxy"], self._host)
        (folder / "proxy-server.conf").write_text(settings + proxy)
        self.url = f"http://{self._host}:{ports['proxy']}"
        running = [self._run(environment, folder, name) for name in (*STORAGE, "proxy")]
        urls = [*(f"http://127.0.0.1:{ports[name]}/" for name in STORAGE), f"{self.url}/"]
        for process, url in zip(running, urls, strict=True):
            process.wait_until(partial(_answers, url), READY_WITHIN)

    def _run(self, environment: Environment, folder: Path, name: str) -> Process:
        command: list[str | Path] = [
            environment.python,
            environment.bin(f"swift-{name}-server"),
            folder / f"{name}-server.conf",
            "-v",
        ]
        return self._processes.enter_context(
            Process(f"swift {name} server", command, log=folder / f"{name}.log", cwd=folder)
        )


def shared(folder: Path, cache: Path, owner: int) -> Swift:
    """The service of everybody who names this folder, started where nobody has; it ends with the
    owner.
    """
    swift, url = Swift(folder, cache), folder / "url"
    with FileLock(f"{folder}.lock"):
        if not url.exists():
            folder.mkdir()
            words = [str(folder), str(cache), str(owner)]
            with (folder / "log").open("w") as log:
                subprocess.run(
                    [sys.executable, "-m", "tests.stand_ins.swift", *words],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=True,
                )
    swift.url = url.read_text()
    return swift


def _serve(folder: Path, cache: Path, owner: int) -> None:
    """Return to who started this once it serves, and go on."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os._exit(not os.read(reading, 1))
    os.setsid()
    watched = os.pidfd_open(owner)
    with Swift(folder, cache) as swift:
        (folder / "url").write_text(swift.url)
        os.write(writing, b".")
        select.select([watched], [], [])


def _defaults(folder: Path, port: int, host: str = "127.0.0.1") -> str:
    """No worker processes: every server is one, and ends when it is told to."""
    return (
        f"[DEFAULT]\nbind_ip = {host}\nbind_port = {port}\nworkers = 0\n"
        f"user = {getpass.getuser()}\nswift_dir = {folder}\ndevices = {folder / 'devices'}\n"
        f"mount_check = false\nlog_address = {folder}/no-syslog\nfallocate_reserve = 0\n"
    )


def _make_rings(environment: Environment, folder: Path, ports: Mapping[str, int]) -> None:
    """In one process: starting Python costs more than the rings."""
    device = "dict(id=0, region=1, zone=1, ip='127.0.0.1', port=int(port), device='d1', weight=1.0)"
    script = (
        "import sys\nfrom swift.common.ring import RingBuilder\n"
        "for name, port in (word.split('=') for word in sys.argv[1:]):\n"
        f"    ring = RingBuilder(4, 1, 0)\n    ring.add_dev({device})\n    ring.rebalance()\n"
        "    ring.get_ring().save(f'{name}.ring.gz')\n"
    )
    words = [f"{name}={port}" for name, port in ports.items()]
    subprocess.run(
        [environment.python, "-W", "ignore", "-c", script, *words],
        check=True,
        capture_output=True,
        cwd=folder,
    )


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return True


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
