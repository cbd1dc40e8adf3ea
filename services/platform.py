"""The machine as a platform: supervisord keeps Prefect, MLflow, the deployer, a worker and the
gateway alive.

Everything listens on the loopback interface alone. What serves does not need any of it.
"""

import logging
import time

from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.private_folders import make_private
from weighbridge.core.processes import is_taken
from weighbridge.core.progress import track
from weighbridge.core.service_addresses import HOST
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.flows import deployments, prefect_database, prefect_settings
from weighbridge.registry import homes
from weighbridge.registry.database import make_schema, prepare_database
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.state import known_targets, traffic_shares
from weighbridge.services.programs import SERVICES, environment, service_names, service_programs
from weighbridge.services.service_status import ServiceStatus, all_services
from weighbridge.serving.bento import bentoml_home
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.reaper import kill_marked, marked
from weighbridge.serving.supervisor import Supervisor

logger = logging.getLogger(__name__)

START_TIMEOUT = 300.0
"""Seconds for all of them together; the first start makes databases."""
ORPHANS_TIMEOUT = 10.0
"""Seconds until processes that were killed have ended: they may hold much memory."""


class Platform:
    """The services of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.home
        self._supervisor = Supervisor(settings.home)

    def up(self) -> list[ServiceStatus]:
        """Have every service run and answer; those that do so already are left alone.

        Raises:
            BadInput: a port belongs to another program, or MLflow to another home as well.
            Unavailable: one of them does not start; the message ends with its log.
        """
        self._end_orphans()
        self._refuse_taken_ports()
        homes.check(self._settings, "starting the platform")
        make_private(self._home)
        make_private(self._home / "prefect")
        make_private(bentoml_home())
        ports = service_addresses.choose(self._settings)
        self._prepare_databases()
        self._supervisor.ensure()
        self._bring_gateway_up()
        programs = service_programs(self._settings, ports, self._supervisor.logs)
        for program in programs:
            self._supervisor.add(program)
        self._wait_until_all_answer([program.name for program in programs])
        # MLflow answers now: the deployer, which may have asked it too early, makes its webhook.
        service_addresses.wake_deployer(self._home, "", "start")
        deployments.register(
            ports.prefect_api, environment(self._settings, ports), self._home, self._settings.cache
        )
        return self.services()

    def down(self) -> list[str]:
        """End every program, also those that serve models, and leave no process.

        `up` brings all of them back.

        Returns:
            The names of what ran.
        """
        running = [state.name for state in self._supervisor.states() if state.pid]
        # `up` writes the services anew; those that serve models come back as they were.
        self._supervisor.shutdown(forget=SERVICES)
        # Runs that a killed worker had begun are not supervisord's to end: their mark finds them.
        kill_marked(self._supervisor.mark_of(""))
        return running

    def services(self) -> list[ServiceStatus]:
        """Return how every service is, whether it runs or not."""
        return all_services(self._settings, self._supervisor)

    def _bring_gateway_up(self) -> None:
        """Have haproxy run by the latest arguments of every target.

        Its own files may be older: a process may have been killed before it could change them.
        """
        workspace = Workspace(self._settings)
        for name in known_targets(self._home):
            try:
                managed = open_target(name, workspace)
                if managed and traffic_shares(managed.load_state()):
                    managed.route()
            except WeighbridgeError as exc:
                logger.warning("%s: %s", name, exc)
        Gateway(self._home).ensure()

    def _end_orphans(self) -> None:
        """End what a supervisord that was killed left behind of the services."""
        if self._supervisor.running():
            return
        deadline = time.monotonic() + ORPHANS_TIMEOUT
        for name in SERVICES:
            mark = self._supervisor.mark_of(name)
            # Runs that a killed worker had begun go on by themselves.
            while name != "worker" and any(marked(mark)) and time.monotonic() < deadline:
                kill_marked(mark)
                time.sleep(0.05)

    def _refuse_taken_ports(self) -> None:
        """Raise BadInput where a port belongs to another program, before anything changes."""
        before = service_addresses.read(self._home)
        for name in service_names(self._settings):
            port = getattr(self._settings, f"{name}_port", 0)
            is_ours = (
                self._supervisor.state(name) is not None and getattr(before, name, None) == port
            )
            if port and not is_ours and is_taken(port, HOST):
                remedy = f"stop it, or choose another with WEIGHBRIDGE_{name.upper()}_PORT (0: any)"
                raise BadInput(
                    f"starting {name}", f"port {port} belongs to another program", remedy
                )

    def _prepare_databases(self) -> None:
        """Make the databases before the servers start: fast, where an empty one is copied."""
        if not self._settings.tracking_uri:
            prepare_database(self._settings)
        if self._settings.postgresql_url("psycopg2"):
            make_schema(self._settings, prefect_settings.POSTGRESQL_SCHEMA)
        elif self._settings.fast_start:
            prefect_database.prepare_database(self._settings)

    def _wait_until_all_answer(self, names: list[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        with track("starting", len(names), "services") as update:
            while missing := [
                service
                for service in self.services()
                if service.name in names and not service.answers
            ]:
                update(len(names) - len(missing))
                late = time.monotonic() > deadline
                for service in missing:
                    # FATAL: supervisord has given it up, and no time will help.
                    if service.state == "FATAL" or late:
                        raise _does_not_answer(service)
                time.sleep(0.2)
            update(len(names))


def _does_not_answer(service: ServiceStatus) -> Unavailable:
    lines: list[str] = []
    if service.log.exists():
        lines = service.log.read_text(errors="replace").strip().splitlines()[-8:]
    return Unavailable(
        f"starting {service.name}",
        "it does not answer. Its log ends:\n" + "\n".join(lines) + "\n",
        f"whole log: {service.log}; the others stay up, weighbridge down stops them",
    )
