"""The commands that bring a running haproxy's servers to the desired state of a target.

Nothing here touches haproxy.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain

from weighbridge.serving.gateway import config
from weighbridge.serving.gateway.haproxy import Server
from weighbridge.serving.gateway.models import Front, Route
from weighbridge.serving.gateway.syntax import address

DELETE = "del server "
"""How the one command begins that haproxy refuses while the server still answers somebody."""


def runtime_commands(
    front: Front, servers: Mapping[str, Server], maps: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the commands that turn the actual state of one worker into the desired one.

    Their order keeps traffic whole at every point in between: a version gets its health path before
    it is started, may be pinned once it is there, loses weight when the others have gained it, and
    is put out of service last. An operation is closed before a version is there that does not
    declare it, and opened when all are gone that don't. A model's name is taken before a version is
    there that goes by it, and refused when all are gone that do.

    Args:
        front: the desired state.
        servers: the worker's servers of this target, by name.
        maps: the worker's maps of this target, by file.
    """
    removed = sorted(set(servers) - {route.name for route in front.routes})
    health, pins, operations, models = config.maps(front)
    return [
        *_delete_entries(operations, maps[operations.file]),
        *_set_entries(health, maps[health.file]),
        *_set_entries(models, maps[models.file]),
        *chain.from_iterable(
            _add_or_update(front, route, servers.get(route.name)) for route in front.routes
        ),
        *_set_entries(pins, maps[pins.file]),
        *_delete_entries(health, maps[health.file]),
        *_delete_entries(pins, maps[pins.file]),
        *(
            _set_weight(front, route)
            for route in front.routes
            if _loses_weight(route, servers.get(route.name))
        ),
        *_put_in_maintenance(front, servers, removed),
        *_set_entries(operations, maps[operations.file]),
        *_delete_entries(models, maps[models.file]),
        *(f"{DELETE}{front.target}/{name}" for name in removed),
    ]


def key_commands(target: str, desired: Set[str], actual: Set[str]) -> list[str]:
    """Return the commands that let in who has one of the desired keys, and nobody else."""
    file = f"{target}.keys"
    # Removed first: cut off in between, the address is closed to somebody rather than open.
    return [
        *(f"del acl {file} {key}" for key in sorted(actual - desired)),
        *(f"add acl {file} {key}" for key in sorted(desired - actual)),
    ]


def _set_entries(desired: config.MapFile, actual: Mapping[str, str]) -> Iterator[str]:
    for key, value in desired.entries.items():
        if actual.get(key) != value:
            yield f"{'set' if key in actual else 'add'} map {desired.file} {key} {value}"


def _delete_entries(desired: config.MapFile, actual: Mapping[str, str]) -> Iterator[str]:
    for key in actual:
        if key not in desired.entries:
            yield f"del map {desired.file} {key}"


def _add_or_update(front: Front, route: Route, server: Server | None) -> Iterator[str]:
    name = f"{front.target}/{route.name}"
    if server is None:
        yield f"add server {name} {config.options(route, front)}"
        # haproxy does not check a server that was added at run time until it is told to.
        yield f"enable health {name}"
    else:
        if server.address != address(route.host, route.port):
            yield f"set server {name} addr {route.host} port {route.port}"
        if server.limit != front.args.in_flight:
            yield f"set maxconn server {name} {front.args.in_flight}"
        # What loses weight does so later: were it first, nobody would have any in between, and
        # requests would get 503.
        if server.weight != route.weight and not _loses_weight(route, server):
            yield _set_weight(front, route)
    # A server is added in maintenance.
    if not route.draining and (server is None or server.in_maintenance):
        yield f"set server {name} state ready"


def _put_in_maintenance(
    front: Front, servers: Mapping[str, Server], removed: Sequence[str]
) -> Iterator[str]:
    """Take new requests from what drains or is removed; requests under way go on."""
    leaving = {*removed, *(route.name for route in front.routes if route.draining)}
    for name, server in servers.items():
        if name in leaving and not server.in_maintenance:
            yield f"set server {front.target}/{name} state maint"


def _loses_weight(route: Route, server: Server | None) -> bool:
    return server is not None and not server.in_maintenance and route.weight < server.weight


def _set_weight(front: Front, route: Route) -> str:
    return f"set server {front.target}/{route.name} weight {route.weight}"
