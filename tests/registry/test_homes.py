"""Homes that work with one MLflow: on SQLite there is one at a time, on PostgreSQL any number."""

import json
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.registry import Registry, homes, leases
from weighbridge.registry.homes import Presence
from weighbridge.registry.ledger import EXPERIMENT

ELSEWHERE = "other-host.12345678.4026531836 17 1.0"
URL = SecretStr("postgresql://user@host/database")


@pytest.fixture
def other(registry: Registry, tmp_path: Path) -> Registry:
    """Another home on the same database."""
    settings = registry.connection.settings
    uri = settings.mlflow_uri()
    return Registry.connect(Settings(home=tmp_path / "other", tracking_uri=uri))


def entries(registry: Registry) -> list[str]:
    experiment = registry.connection.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return [name for name in experiment.tags if name.startswith("weighbridge.home.")]


def live_elsewhere(registry: Registry, guard: homes.Guard, seconds: float = 60.0) -> None:
    """A home on another machine, seen last so that its lease lasts so much longer."""
    owner = {leases.OWNER: ELSEWHERE, leases.LEASE: f"{time.time() + seconds:.0f}"}
    presence = Presence(home="theirs", host="gpu-1", guard=guard, owner=owner)
    connection = registry.connection
    connection.client.set_experiment_tag(
        connection.experiment(EXPERIMENT), "weighbridge.home.theirs.17", presence.model_dump_json()
    )


def test_a_second_home_on_sqlite_is_refused_in_a_line_that_says_what_to_set(
    registry: Registry, other: Registry
) -> None:
    with registry.joined("releasing demo"):
        with pytest.raises(
            BadInput, match=r"^releasing demo: a home on .* set WEIGHBRIDGE_DATABASE_URL=postgres"
        ) as refused:
            other.join("releasing demo")
        assert "\n" not in str(refused.value)
        with pytest.raises(BadInput, match="SQLite does not keep two homes apart"):
            homes.check(other.connection.settings, "planning demo")
        assert len(entries(registry)) == 1, "who was refused left no trace"
    with other.joined("releasing demo"):
        pass
    assert entries(registry) == []


def test_many_processes_of_one_home_are_one_home(registry: Registry) -> None:
    with registry.joined("a"), Registry.connect(registry.connection.settings).joined("b"):
        registry.refuse_other_homes("c")


def test_a_home_whose_lease_has_run_out_is_none(registry: Registry) -> None:
    live_elsewhere(registry, "sqlite", seconds=-1)
    with registry.joined("releasing demo"):
        assert len(entries(registry)) == 1
    live_elsewhere(registry, "sqlite")
    with pytest.raises(BadInput, match="a home on gpu-1"):
        registry.join("releasing demo")


@pytest.mark.parametrize(
    ("own", "theirs", "refused"),
    [
        ("sqlite", "server", "SQLite does not keep"),
        ("server", "sqlite", "SQLite does not keep"),
        ("postgresql", "postgresql", ""),
        ("postgresql", "server", "only one of them is told"),
        ("server", "postgresql", "only one of them is told"),
        ("server", "server", ""),
    ],
)
def test_two_homes_go_together_where_both_are_guarded_by_postgresql_or_nobody_knows_of_sqlite(
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    own: homes.Guard,
    theirs: homes.Guard,
    refused: str,
) -> None:
    live_elsewhere(registry, theirs)
    presence = homes._own(registry.connection)
    monkeypatch.setattr(homes, "_own", lambda _: presence.model_copy(update={"guard": own}))
    if not refused:
        registry.refuse_other_homes("releasing demo")
        return
    with pytest.raises(BadInput, match=refused):
        registry.refuse_other_homes("releasing demo")


def test_what_guards_a_home_is_known_by_its_settings(registry: Registry) -> None:
    connection = registry.connection
    assert homes._own(connection).guard == "sqlite"
    object.__setattr__(connection, "uri", "http://127.0.0.1:5000")
    assert homes._own(connection).guard == "server"
    settings = connection.settings.model_copy(update={"database_url": URL})
    object.__setattr__(connection, "settings", settings)
    assert homes._own(connection).guard == "postgresql"


def test_no_path_of_a_machine_is_written_into_mlflow(registry: Registry) -> None:
    with registry.joined("releasing demo"):
        experiment = registry.connection.client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        assert str(registry.connection.settings.home) not in json.dumps(dict(experiment.tags))


def test_an_mlflow_of_ones_own_is_not_opened_for_a_look(tmp_path: Path) -> None:
    homes.check(Settings(home=tmp_path), "planning demo")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_somebody_deleted_ends_no_release(registry: Registry) -> None:
    connection = registry.connection
    connection.client.delete_experiment(connection.experiment(EXPERIMENT))
    with Registry.connect(connection.settings).joined("releasing demo"):
        pass
