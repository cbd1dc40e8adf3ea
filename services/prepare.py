"""Make what the platform's services begin with, where each of them is a container of its own.

Usage: ``python -m weighbridge.services.prepare storage|deployments``, see compose.yaml
"""

import logging
import os
import sys

from weighbridge.core import s3
from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.processes import run
from weighbridge.core.settings import Settings
from weighbridge.flows import deployments, prefect_settings
from weighbridge.registry.database import make_schema, prepare_database

logger = logging.getLogger("weighbridge.services.prepare")


def prepare_storage(settings: Settings) -> None:
    """Have the bucket, MLflow's tables and Prefect's schema be there.

    Raises:
        BadInput: the settings name no shared store, or it refuses the credentials.
        Unavailable: bucket or database do not answer.
    """
    bucket, _ = s3.split(settings.store)
    s3.make_bucket(s3.S3Location(bucket=bucket))
    # The database itself, and not the server, which begins after this.
    prepare_database(settings.model_copy(update={"tracking_uri": ""}))
    make_schema(settings, prefect_settings.POSTGRESQL_SCHEMA)


def prepare_deployments() -> None:
    """Have Prefect know the platform's work pool and deployments.

    Raises: Unavailable: it refuses.
    """
    pool = ("work-pool", "create", deployments.POOL, "--type", "process", "--overwrite")
    home = Settings().home
    done = run("prefect", [sys.executable, "-m", "prefect", "--no-prompt", *pool], cwd=home)
    if done.status != 0:
        raise Unavailable("registering the deployments", done.tail(12))
    deployments.deploy({}, home)
    logger.info("the deployments are registered with %s", os.environ.get("PREFECT_API_URL"))


def main(arguments: list[str]) -> int:
    """Prepare the named part; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments == ["storage"]:
            prepare_storage(Settings())
        elif arguments == ["deployments"]:
            prepare_deployments()
        else:
            raise BadInput("preparing the platform", "say storage or deployments")
    except WeighbridgeError as exc:
        logger.error("%s", exc)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
