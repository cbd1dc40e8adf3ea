"""Hosts of a network of their own on this machine: a network namespace each, with its own name.

They reach this machine at the network's gateway, and each other. It takes root, and `ip`.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType


def missing() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if not all(map(shutil.which, ("ip", "unshare"))):
        return "there is no `ip`, or no `unshare`"
    probe = subprocess.run(["ip", "netns", "add", name := f"wb-probe-{os.getpid()}"], check=False)
    if probe.returncode:
        return "this system allows no network namespaces"
    _ip("netns", "delete", name)
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """One of them."""

    def __init__(self, name: str, namespace: str, folder: Path, address: str) -> None:
        self.name = name
        self.folder = folder
        self.address = address
        self._namespace = namespace
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str | Path, variables: Mapping[str, str]) -> None:
        """Start a program there, with a home and temporary files of its own."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        named = 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"'
        inside = ["ip", "netns", "exec", self._namespace, "unshare", "--uts", "sh", "-c", named]
        environment = {
            **os.environ,
            "WEIGHBRIDGE_HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            **variables,
        }
        with (self.folder / "log").open("a") as log:
            self._started.append(
                subprocess.Popen(
                    [*inside, self.name, *map(str, command)],
                    env=environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def kill(self) -> None:
        """As when the power goes: everything that runs there, at once."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._namespace], check=True, capture_output=True, text=True
        )
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self._started:
            process.kill()  # one that was not in the namespace yet
            process.wait(10)


class Network:
    """Hosts that reach this machine at `gateway`; use as a context manager."""

    def __init__(self, folder: Path, *names: str) -> None:
        number = os.getpid()
        net = f"10.231.{number % 250}"
        self.gateway = f"{net}.1"
        self._bridge = f"wb{number}"
        self.hosts = {
            name: Host(name, f"wb-{number}-{name}", folder / name, f"{net}.{place + 2}")
            for place, name in enumerate(names)
        }
        self._cleanup = ExitStack()

    def __enter__(self) -> "Network":
        with self._cleanup:
            _ip("link", "add", self._bridge, "type", "bridge")
            self._cleanup.callback(_ip, "link", "delete", self._bridge)
            _ip("addr", "add", f"{self.gateway}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for number, host in enumerate(self.hosts.values()):
                self._add(host, f"{self._bridge}-{number}")
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _write_names(self, namespace: str) -> None:
        """Have the hosts know each other by name; `ip netns exec` lays these over /etc's."""
        folder = Path("/etc/netns") / namespace
        folder.mkdir(parents=True)
        self._cleanup.callback(shutil.rmtree, folder)
        names = {"localhost": "127.0.0.1"} | {
            host.name: host.address for host in self.hosts.values()
        }
        lines = [f"{address} {name}\n" for name, address in names.items()]
        (folder / "hosts").write_text("".join(lines))
        # Nobody answers for other names here, which would be waited for.
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def _add(self, host: Host, link: str) -> None:
        namespace = host._namespace
        self._write_names(namespace)
        _ip("netns", "add", namespace)
        self._cleanup.callback(_ip, "netns", "delete", namespace)
        self._cleanup.callback(host.kill)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
