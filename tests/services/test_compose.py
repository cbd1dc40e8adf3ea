"""The compose file: one network, no secret in it, and nothing open but to this machine."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from weighbridge.core.own_secrets import VARIABLES
from weighbridge.core.settings import Settings
from weighbridge.services.compose import SOURCE, write_compose

ONCE = {"prepare", "deployments"}
"""Services that end when they have done their work."""


@pytest.fixture
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(SOURCE.read_text()))


def test_the_specifications_own_schema_takes_it(compose: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    assert list(Draft7Validator(schema).iter_errors(compose)) == []
    compose["services"]["s3"]["imgae"] = "misspelt"
    assert list(Draft7Validator(schema).iter_errors(compose)) != []


def test_every_service_and_volume_that_is_named_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "s3", "prefect", "mlflow", "deployer", "worker", *ONCE}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for mode in ("network_mode", "pid"):
            assert service.get(mode, "service:deployer").removeprefix("service:") in services
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        named = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert named <= set(compose["volumes"])


def test_who_is_waited_for_tells_that_it_is_ready(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, how in service.get("depends_on", {}).items():
            if name in ONCE:
                assert how == {"condition": "service_completed_successfully"}
            else:
                assert how == {"condition": "service_healthy"}
                assert "healthcheck" in compose["services"][name]


def test_postgresql_is_ready_when_others_reach_it_and_not_while_it_is_being_set_up(
    compose: dict[str, Any],
) -> None:
    """Its image's first start makes the database by a server that listens on a socket alone."""
    assert "--host=127.0.0.1" in compose["services"]["postgres"]["healthcheck"]["test"]


def test_ports_are_open_to_this_machine_alone(compose: dict[str, Any]) -> None:
    ports = [port for one in compose["services"].values() for port in one.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_variables_are_settings_and_none_is_a_secret(compose: dict[str, Any]) -> None:
    known = {f"WEIGHBRIDGE_{name.upper()}" for name in Settings.model_fields}
    secret = VARIABLES | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD"}
    for service in compose["services"].values():
        given = set(service.get("environment", {}))
        assert {name for name in given if name.startswith("WEIGHBRIDGE_")} <= known
        assert not given & (secret - {"WEIGHBRIDGE_TRACKING_URI"})


def test_links_for_people_name_an_address_that_is_open_to_them(compose: dict[str, Any]) -> None:
    ports = compose["services"]["prefect"]["ports"]
    page = compose["services"]["worker"]["environment"]["PREFECT_UI_URL"]
    assert page.removeprefix("http://") in [port.rpartition(":")[0] for port in ports]


def test_every_module_that_is_run_is_there(compose: dict[str, Any]) -> None:
    modules = re.findall(r"weighbridge\.[a-z_.]+[a-z_]", json.dumps(compose["services"]))
    assert len(modules) == 4
    assert all(find_spec(module) for module in modules)


def test_services_of_ours_have_no_rights(compose: dict[str, Any]) -> None:
    ours = [one for one in compose["services"].values() if "WEIGHBRIDGE_IMAGE" in one["image"]]
    assert len(ours) == 6
    for service in ours:
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_secrets_are_made_once_and_are_the_owners_alone(tmp_path: Path) -> None:
    path = write_compose(tmp_path / "deploy", "weighbridge-control:1")
    written = {file.name: file.read_text() for file in (path.parent / "secrets").iterdir()}
    assert (path.parent / "secrets").stat().st_mode & 0o777 == 0o700
    variables = dict(line.split("=", 1) for line in written["platform.env"].splitlines())
    assert written["postgres_password"] in variables["WEIGHBRIDGE_DATABASE_URL"]
    assert variables["PREFECT_API_AUTH_STRING"] == written["prefect_login"]
    [identity] = json.loads(written["s3_keys.json"])["identities"]
    assert identity["credentials"][0]["secretKey"] == variables["AWS_SECRET_ACCESS_KEY"]
    assert path.read_text() == SOURCE.read_text()

    write_compose(path.parent, "weighbridge-control:2")
    again = {file.name: file.read_text() for file in (path.parent / "secrets").iterdir()}
    assert again == written
    assert (path.parent / ".env").read_text() == "WEIGHBRIDGE_IMAGE=weighbridge-control:2\n"


def test_what_is_mounted_can_be_read_by_whatever_user_the_server_is(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "deploy"
    mounted = {folder / secret["file"] for secret in compose["secrets"].values()}
    before = os.umask(0o077)
    try:
        write_compose(folder, "weighbridge-control:1")
        for file in mounted:
            file.chmod(0o600)  # as earlier releases made them
        write_compose(folder, "weighbridge-control:1")
    finally:
        os.umask(before)
    modes = {file: file.stat().st_mode & 0o777 for file in (folder / "secrets").iterdir()}
    assert {file for file, mode in modes.items() if mode == 0o644} == mounted
    assert {mode for file, mode in modes.items() if file not in mounted} == {0o600}
