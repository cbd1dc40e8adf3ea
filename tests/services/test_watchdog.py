"""The watchdog: what hangs is started again; the worker is judged where Prefect answers."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from weighbridge.core import service_addresses
from weighbridge.core.hang_watch import LOOKS
from weighbridge.core.settings import Settings
from weighbridge.services import watchdog
from weighbridge.services.service_status import ServiceStatus
from weighbridge.serving.supervisor import Supervisor


class Services:
    """Stands in for what runs; every service started an hour ago."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answers = {"prefect": True, "mlflow": True, "deployer": True, "worker": True}
        self.since = {name: time.time() - 3600 for name in self.answers}
        self.killed: list[str] = []
        patch.setattr(watchdog, "all_services", lambda settings, supervisor: self.statuses())
        patch.setattr(Supervisor, "kill", lambda supervisor, name: self.killed.append(name))

    def statuses(self) -> list[ServiceStatus]:
        return [
            ServiceStatus(
                name=name, state="RUNNING", since=self.since[name], answers=answers, log=Path("x")
            )
            for name, answers in self.answers.items()
        ]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    return Services(monkeypatch)


@pytest.fixture
def dog() -> watchdog.Watchdog:
    settings = Settings()
    service_addresses.watchdog_file(settings.home).parent.mkdir(parents=True)
    return watchdog.Watchdog(settings)


def looks(dog: watchdog.Watchdog, count: int) -> None:
    for _ in range(count):
        dog.look()


@pytest.mark.parametrize("name", ["prefect", "mlflow", "deployer", "worker"])
def test_a_service_that_hangs_is_started_again_and_that_is_known_afterwards(
    services: Services, dog: watchdog.Watchdog, name: str
) -> None:
    looks(dog, 1)
    services.answers[name] = False
    looks(dog, LOOKS - 1)
    assert services.killed == []
    looks(dog, 1)
    assert services.killed == [name]
    restarts: Mapping[str, float] = service_addresses.watchdog_restarts(Settings().home)
    assert restarts == {name: pytest.approx(time.time(), abs=20)}
    assert service_addresses.watchdog_looks(Settings().home, time.time() - 60)


def test_a_service_that_has_just_been_started_is_given_time(
    services: Services, dog: watchdog.Watchdog
) -> None:
    services.answers["mlflow"], services.since["mlflow"] = False, time.time()
    looks(dog, 3 * LOOKS)
    assert services.killed == []


def test_while_prefect_hangs_nobody_knows_how_the_worker_is(
    services: Services, dog: watchdog.Watchdog
) -> None:
    looks(dog, 1)
    services.answers |= {"prefect": False, "worker": False}
    looks(dog, 3 * LOOKS)
    assert services.killed == ["prefect"]


def test_a_full_disk_holds_up_no_restart(
    services: Services, dog: watchdog.Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(dog, 1)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watchdog, "replace_text", no_room)
    monkeypatch.setattr(Path, "touch", no_room)
    services.answers["mlflow"] = False
    looks(dog, LOOKS)
    assert services.killed == ["mlflow"]
