"""What the services of `weighbridge up` are started with."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from weighbridge.core.service_addresses import Addresses
from weighbridge.core.settings import Settings
from weighbridge.services.programs import environment, inherited

SECRET = {"tracking_uri", "database_url", "webhook_secret"}
"""Settings that reach a service in a file of its own."""


def test_every_setting_that_is_no_secret_is_given_to_the_services(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, store="s3://models/shared")
    given = environment(settings, Addresses(prefect=1, mlflow=2, deployer=3))
    wanted = {f"WEIGHBRIDGE_{name.upper()}" for name in set(Settings.model_fields) - SECRET}
    assert wanted - set(given) == set()
    assert given["WEIGHBRIDGE_STORE"] == "s3://models/shared"


@pytest.mark.parametrize("service", ["deployer", "worker"])
@pytest.mark.parametrize("name", ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "AWS_PROFILE"])
def test_who_rolls_out_and_monitors_finds_the_cluster_of_whoever_called_up(
    service: str, name: str
) -> None:
    assert any(fnmatchcase(name, pattern) for pattern in inherited(service, Settings()))


@pytest.mark.parametrize("service", ["prefect", "mlflow", "watchdog"])
def test_services_that_need_no_cluster_get_no_login_to_one(service: str) -> None:
    assert not any(fnmatchcase("KUBECONFIG", one) for one in inherited(service, Settings()))
