"""Events that people hang automations on, in a real Prefect; without one, nothing waits."""

import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import until
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings
from weighbridge.deployer.mlflow_events import of_delivery
from weighbridge.deployer.webhook_receiver import Delivery
from weighbridge.flows.events import Announcement, Announcer, announce, rolled_back
from weighbridge.flows.prefect_server import prefect_api

ALIAS = Delivery(
    id="one",
    entity="model_version_alias",
    action="created",
    data={"name": "demo", "alias": "champion", "version": "7"},
)


@pytest.fixture(autouse=True)
def _no_api_of_the_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_PROFILE", "ephemeral")
    yield
    monkeypatch.undo()
    read_again()


def read_again() -> None:
    """Prefect reads its settings once."""
    from prefect.context import refresh_global_settings_context

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refresh_global_settings_context()


def events(name: str) -> list[dict[str, Any]]:
    """What Prefect keeps under a name, once it is there."""
    from prefect.client.orchestration import get_client

    body: Any = {"filter": {"event": {"name": [name]}}}
    events: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while not events and time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            events = client.request("POST", "/events/filter", json=body).json()["events"]
        time.sleep(0.2)
    return events


def test_prefect_keeps_the_events_with_what_they_are_about(tmp_path: Path) -> None:
    with prefect_api(Settings(home=tmp_path / "home")):
        assert announce(of_delivery(ALIAS))
        (event,) = events("mlflow.model-version-alias.created")
        assert event["resource"]["prefect.resource.id"] == "mlflow.model.demo"
        assert {
            resource["prefect.resource.id"]: resource["prefect.resource.role"]
            for resource in event["related"]
        } == {"mlflow.model-version.demo.7": "model-version", "mlflow.alias.champion": "alias"}
        assert event["payload"] == {"name": "demo", "alias": "champion", "version": "7"}
        assert announce(rolled_back("local", "demo", "8", "7", "it fell"))
        (event,) = events("weighbridge.rolled-back")
        assert event["payload"] == {"target": "local", "version": "8", "to": "7", "why": "it fell"}


def test_a_delivery_is_one_event_however_often_it_is_told() -> None:
    first, again = of_delivery(ALIAS).body(), of_delivery(ALIAS).body()
    assert first["id"] == again["id"]
    assert of_delivery(ALIAS.model_copy(update={"id": "two"})).body()["id"] != first["id"]


def test_a_delivery_with_little_in_it_is_an_event_all_the_same() -> None:
    body = of_delivery(
        Delivery(id="x", entity="model_version_alias", action="deleted", data={"name": None})
    ).body()
    assert (body["resource"]["prefect.resource.id"], body["related"]) == (
        "mlflow.model.unknown",
        [],
    )


def test_without_prefect_nothing_is_told_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    read_again()
    assert announce(of_delivery(ALIAS)) is False
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    read_again()
    assert announce(of_delivery(ALIAS)) is False


def test_an_announcer_does_not_wait_and_drops_what_is_too_much() -> None:
    sent: list[Announcement] = []
    gate = threading.Event()

    def slow(announcement: Announcement) -> None:
        gate.wait(30)
        sent.append(announcement)

    announcer, began = Announcer(slow), time.monotonic()
    for number in range(1100):
        announcer(Announcement(event=str(number), model="demo"))
    assert time.monotonic() - began < 2
    gate.set()
    until(lambda: len(sent) >= 1000)
    assert [announcement.event for announcement in sent[:1000]] == [
        str(number) for number in range(1000)
    ]


def test_prefect_that_refuses_an_event_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise httpx.HTTPError("no")

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    read_again()
    monkeypatch.setattr("prefect.client.orchestration.SyncPrefectClient.request", refuse)
    assert announce(of_delivery(ALIAS)) is False
