"""This machine is asked without the user's proxy, whatever the client."""

import pytest

from weighbridge.core.proxies import direct_hosts

OWN = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("upper", "lower", "hosts"),
    [
        ("", "", OWN),
        ("example.com", "", f"example.com,{OWN}"),
        ("", "a.example,localhost", "a.example,localhost,127.0.0.1,::1"),
        ("*", "", "*"),
    ],
)
def test_own_addresses_are_added_to_those_of_the_user(
    monkeypatch: pytest.MonkeyPatch, upper: str, lower: str, hosts: str
) -> None:
    monkeypatch.setenv("NO_PROXY", upper)
    monkeypatch.setenv("no_proxy", lower)
    assert direct_hosts() == {"NO_PROXY": hosts, "no_proxy": hosts}
