"""Have the deployer carry out a flow run that a worker was given; where it can't, do so here.

Usage: ``python -m weighbridge.deployer.run_request FLOW``, started by Prefect's worker for the
deployments of which `weighbridge.flows.deployments` says so. It imports little: that is its point.
"""

import os
import sys

import httpx

from weighbridge.core import loopback, own_secrets, service_addresses
from weighbridge.core.settings import Settings

LONGEST_RUN = 3600.0
"""Seconds after which a run counts as crashed: each of its questions has a deadline itself."""


def request(flow: str, flow_run: str) -> int | None:
    """Return the exit code of a run that the deployer has carried out; None where it does not."""
    home = Settings().home
    ports, token = service_addresses.read(home), own_secrets.read(home, "deployer")
    if ports is None or token is None:
        return None
    url, run = f"{ports.url('deployer')}/flow-runs", {"flow": flow, "id": flow_run}
    headers = {"Authorization": f"Bearer {token}"}
    try:
        answer = loopback.post(url, run, LONGEST_RUN, headers)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return None
    except httpx.HTTPError as exc:
        # What it had begun died with it, or hangs: a second process must not do it as well.
        print(f"the deployer did not say how the run ended: {exc}", file=sys.stderr)
        return 1
    if answer.is_client_error:
        return None
    return 0 if answer.is_success else 1


def main() -> int:
    """Return 0 where Prefect knows how the run ended, 1 where nobody does."""
    status = request(sys.argv[1], os.environ["PREFECT__FLOW_RUN_ID"])
    if status is None:
        engine = [sys.executable, "-m", "prefect.engine"]
        os.execv(engine[0], engine)
    return status


if __name__ == "__main__":
    sys.exit(main())
