"""The user's proxies, which know nothing of this machine's own addresses."""

import os

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_VARIABLES = ("NO_PROXY", "no_proxy")


def direct_hosts() -> dict[str, str]:
    """Return the variables by which this machine is asked without a proxy.

    To hosts that are named in them already, this machine's own are added. Some clients read one
    spelling, some the other.
    """
    listed = [host for name in _VARIABLES for host in os.environ.get(name, "").split(",") if host]
    # Alone it means every host, among others it is a name to some clients.
    hosts = "*" if "*" in listed else ",".join(dict.fromkeys([*listed, *_LOOPBACK]))
    return dict.fromkeys(_VARIABLES, hosts)


def keep_loopback_direct() -> None:
    """Have whatever this process asks, or starts, reach this machine without a proxy."""
    os.environ.update(direct_hosts())
