"""What to tell a running haproxy, so that its servers become those of a front; nothing here touches
haproxy.
"""

from collections.abc import Iterator, Mapping

from weighbridge.serving.gateway import config
from weighbridge.serving.gateway.haproxy import Server
from weighbridge.serving.gateway.models import Front, Route


def orders(
    front: Front, there: Mapping[str, Server], files: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What turns a worker that has these servers and maps into the wish; at no point is there less
    than either has.
    """
    wanted = config.maps(front)
    begin = [
        order for route in front.routes for order in _begin(front, route, there.get(route.name))
    ]
    # A version may be pinned once it is there, and is no more before it goes; its health path is
    # known all along.
    enter = [
        f"{'set' if key in files[name] else 'add'} map {name} {key} {value}"
        for name, entries in wanted.items()
        for key, value in entries.items()
        if files[name].get(key) != value
    ]
    early = [order for order in enter if f" map {front.target}.health " in order]
    leave = [
        f"del map {name} {key}"
        for name, entries in wanted.items()
        for key in files[name]
        if key not in entries
    ]
    going = {route.name for route in front.routes if route.draining} | _absent(front, there)
    rest = [
        f"set server {front.target}/{name} state maint"
        for name, server in there.items()
        if name in going and not server.in_maintenance
    ]
    gone = [f"del server {front.target}/{name}" for name in sorted(_absent(front, there))]
    less = [_weigh(front, route) for route in front.routes if _loses(route, there.get(route.name))]
    return [
        *early,
        *begin,
        *(order for order in enter if order not in early),
        *leave,
        *less,
        *rest,
        *gone,
    ]


def _begin(front: Front, route: Route, server: Server | None) -> Iterator[str]:
    name = f"{front.target}/{route.name}"
    if server is None:
        yield f"add server {name} {config.options(route, front)}"
        yield f"enable health {name}"
    else:
        if server.address != config.address(route.host, route.port):
            yield f"set server {name} addr {route.host} port {route.port}"
        if server.limit != front.args.in_flight:
            yield f"set maxconn server {name} {front.args.in_flight}"
        if server.weight != route.weight and not _loses(route, server):
            yield _weigh(front, route)
    if not route.draining and (server is None or server.in_maintenance):
        yield f"set server {name} state ready"


def _loses(route: Route, server: Server | None) -> bool:
    """Whether it gets less of the traffic than it has: it does so when the others have more
    already.
    """
    return server is not None and not server.in_maintenance and route.weight < server.weight


def _weigh(front: Front, route: Route) -> str:
    return f"set server {front.target}/{route.name} weight {route.weight}"


def _absent(front: Front, there: Mapping[str, Server]) -> set[str]:
    return set(there) - {route.name for route in front.routes}
