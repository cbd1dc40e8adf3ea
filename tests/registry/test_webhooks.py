"""Our webhook in a real MLflow server: one, pointing at us, signed with our secret, whatever was
done to it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.mlflow_server import CALLS_THIS_MACHINE, mlflow_server
from tests.registry.conftest import Make
from tests.stand_ins.http_server import Handler, Server
from tests.waiting import soon
from weighbridge.core.errors import Unavailable
from weighbridge.core.service_addresses import Addresses
from weighbridge.core.settings import Settings
from weighbridge.deployer.webhook_receiver import DeliveryRejected, verified
from weighbridge.registry import Registry
from weighbridge.registry.webhooks import EVENTS, NAME

pytestmark = pytest.mark.usefixtures("warm_services")
SECRET = "s3cret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """An MLflow server of its own that may call receivers on this machine."""
    with mlflow_server(folder, **CALLS_THIS_MACHINE, MLFLOW_WEBHOOK_CACHE_TTL="0") as (url, _):
        yield url


@pytest.fixture
def registry(server: str, tmp_path: Path) -> Registry:
    registry = Registry.connect(Settings(home=tmp_path / "home", tracking_uri=server))
    for hook in registry.connection.client.list_webhooks():
        registry.connection.client.delete_webhook(hook.webhook_id)
    return registry


@dataclass
class Listener:
    """Takes what MLflow sends."""

    url: str = ""
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def signed(self, secret: str) -> list[bytes]:
        bodies = []
        for headers, body in list(self.heard):
            try:
                verified(headers, body, secret, time.time())
            except DeliveryRejected:
                continue
            bodies.append(body)
        return bodies


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()

    class Receiver(Handler):
        def do_POST(self) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            listener.heard.append((headers, self.body()))
            self.answer()

    with Server(Receiver) as running:
        listener.url = f"{running.url}/webhooks/mlflow"
        yield listener


def test_an_alias_that_moves_is_told_to_the_address_and_signed_with_the_secret(
    registry: Registry, listener: Listener, make: Make
) -> None:
    with registry.release("demo", 1, params={}, tags={}) as run:
        version = registry.register("demo", "base", make("base"), run=run)
    registry.ensure_webhook(listener.url, SECRET)
    registry.promote(version)
    assert soon(lambda: listener.signed(SECRET))
    assert b'"alias": "champion"' in listener.signed(SECRET)[0]
    assert listener.signed("another") == []
    registry.connection.client.delete_registered_model_alias("demo", "champion")
    assert soon(lambda: len(listener.signed(SECRET)) == 2)
    assert b'"deleted"' in listener.signed(SECRET)[1]


def test_an_alias_moved_by_a_command_is_told_as_well_where_the_server_is_up(
    registry: Registry, server: str, folder: Path, tmp_path: Path, listener: Listener, make: Make
) -> None:
    """A command opens the database; only what goes through the server is told to anybody."""
    with registry.release("demo", 1, params={}, tags={}) as run:
        version = registry.register("demo", "base", make("base"), run=run)
    registry.ensure_webhook(listener.url, SECRET)
    registry.connection.client.set_registered_model_alias("demo", "champion", version.version)
    assert soon(lambda: listener.signed(SECRET))
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True, exist_ok=True)
    ports = Addresses(prefect=1, mlflow=int(server.rpartition(":")[2]), deployer=1)
    (home / "run" / "platform.json").write_text(ports.model_dump_json())
    database = f"sqlite:///{folder}/mlflow.db"
    Registry.connect(Settings(home=home, tracking_uri=database)).restore_champion(version, None)
    assert soon(lambda: len(listener.signed(SECRET)) == 2)
    assert registry.champion("demo") is None


def test_the_server_of_another_installation_is_not_told(
    server: str, tmp_path: Path, make: Make
) -> None:
    """The port that was ours before `down` may be somebody else's now."""
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True, exist_ok=True)
    ports = Addresses(prefect=1, mlflow=int(server.rpartition(":")[2]), deployer=1)
    (home / "run" / "platform.json").write_text(ports.model_dump_json())
    own = Registry.connect(Settings(home=home))
    with own.release("demo", 1, params={}, tags={}) as run:
        own.promote(own.register("demo", "base", make("own"), run=run))
    assert own.champion("demo") is not None


def test_it_is_there_once_however_often_it_is_ensured_and_is_not_written_again(
    registry: Registry,
) -> None:
    registry.ensure_webhook("http://127.0.0.1:1/a", SECRET)
    (first,) = registry.connection.client.list_webhooks()
    registry.ensure_webhook("http://127.0.0.1:1/a", SECRET)
    (again,) = registry.connection.client.list_webhooks()
    assert (again.name, again.url, str(again.status)) == (NAME, "http://127.0.0.1:1/a", "ACTIVE")
    assert sorted(map(str, again.events)) == sorted(f"{e}" for e in map(_event, EVENTS))
    assert again.last_updated_timestamp == first.last_updated_timestamp


def _event(name: str) -> object:
    from mlflow.entities.webhook import WebhookEvent

    return WebhookEvent.from_str(name)


@pytest.mark.parametrize(
    "harm",
    [
        {"url": "http://127.0.0.1:2/elsewhere"},
        {"status": "DISABLED"},
        {"events": ["registered_model.created"]},
        {"secret": "another"},
    ],
    ids=["url", "status", "events", "secret"],
)
def test_whatever_was_done_to_it_is_repaired(
    registry: Registry, listener: Listener, harm: dict[str, object]
) -> None:
    client = registry.connection.client
    registry.ensure_webhook(listener.url, SECRET)
    (hook,) = client.list_webhooks()
    time.sleep(0.002)  # MLflow's clock of changes ticks in milliseconds
    client.update_webhook(hook.webhook_id, **harm)
    registry.ensure_webhook(listener.url, SECRET)
    (mended,) = client.list_webhooks()
    assert (mended.url, str(mended.status), len(mended.events)) == (listener.url, "ACTIVE", 2)
    assert client.test_webhook(mended.webhook_id).success
    assert len(listener.signed(SECRET)) == 1


def test_another_process_and_another_address_take_it_over(
    registry: Registry, listener: Listener
) -> None:
    registry.ensure_webhook("http://127.0.0.1:1/before", "before")
    Registry(registry.connection).ensure_webhook(listener.url, SECRET)
    (hook,) = registry.connection.client.list_webhooks()
    assert registry.connection.client.test_webhook(hook.webhook_id).success
    assert len(listener.signed(SECRET)) == 1


def test_doubles_go_those_of_others_stay_and_a_deleted_one_comes_back(registry: Registry) -> None:
    client, url = registry.connection.client, "http://127.0.0.1:1/a"
    for name in (NAME, "of-somebody-else", NAME):
        client.create_webhook(name, url, ["model_version.created"])
    registry.ensure_webhook(url, SECRET)
    assert sorted(hook.name for hook in client.list_webhooks()) == ["of-somebody-else", NAME]
    for hook in client.list_webhooks():
        client.delete_webhook(hook.webhook_id)
    registry.ensure_webhook(url, SECRET)
    assert [hook.name for hook in client.list_webhooks()] == [NAME]


def test_a_database_without_a_server_sends_none_and_says_so(tmp_path: Path) -> None:
    registry = Registry.connect(Settings(home=tmp_path / "home"))
    with pytest.raises(Unavailable, match="only its server sends webhooks"):
        registry.ensure_webhook("http://127.0.0.1:1/a", SECRET)
