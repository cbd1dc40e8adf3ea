"""The platform's Prefect server: as `prefect server start`, and only for requests by its own names.

Prefect answers whatever the Host header says. A page of the web whose name was made to mean this
machine would be of the same origin as Prefect's own pages.

Usage: ``python -m weighbridge.flows.prefect_platform_server PORT``, started by `weighbridge up`.
"""

import sys

from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.core.service_addresses import HOST
from weighbridge.core.settings import Settings
from weighbridge.flows import prefect_internals


def main() -> None:
    """Serve until a signal ends the process. Settings come from the environment, as Prefect's."""
    import uvicorn

    if Settings().fast_start:
        try:
            prefect_internals.poll_seldom()
            prefect_internals.writers_wait()
        except NAME_IS_GONE as exc:
            warn_name_is_gone("prefect", exc)
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    server = get_current_settings().server
    # The last process to make a server of this, so Prefect frees what it needs only for that.
    app = create_app(final=True)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=Settings().hosts())
    uvicorn.run(
        app,
        host=HOST,
        port=int(sys.argv[1]),
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
