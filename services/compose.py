"""Write the compose file of the whole platform into a folder, with secrets made for it.

::

    FOLDER/compose.yaml             as it comes; what is changed in it goes when it is written anew
    FOLDER/.env                     which images
    FOLDER/secrets/platform.env     variables of our services that are secrets
    FOLDER/secrets/prefect_login    user:password of Prefect's pages
    FOLDER/secrets/…                PostgreSQL's password, keys of the S3 server

Secrets that are there stay as they are. The folder is its owner's alone.
"""

import json
import secrets
from pathlib import Path
from typing import Final
from urllib.parse import quote

from weighbridge.core.errors import Unavailable
from weighbridge.core.files import made_once, replace_text
from weighbridge.core.own_secrets import PREFECT_USER

SOURCE: Final = Path(__file__).with_name("compose.yaml")


def write_compose(folder: Path, image: str) -> Path:
    """Write everything that `docker compose up` needs in a folder; return the compose file.

    Raises: Unavailable: the folder cannot be written.
    """
    path = folder / "compose.yaml"
    try:
        replace_text(path, SOURCE.read_text())
        replace_text(folder / ".env", f"WEIGHBRIDGE_IMAGE={image}\n")
        _write_secrets(folder / "secrets")
    except OSError as exc:
        raise Unavailable(f"writing {path}", str(exc), "choose another folder") from exc
    return path


def _write_secrets(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    # One that was made before may be open to everybody, and what a server reads in it is.
    folder.chmod(folder.stat().st_mode & 0o770)
    database = _made_for_server(folder / "postgres_password", secrets.token_urlsafe(24))
    login = made_once(
        folder / "prefect_login", f"{PREFECT_USER}:{secrets.token_urlsafe(24)}", 0o600
    )
    key = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
    identity = {
        "name": "weighbridge",
        "credentials": [key],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    keys = _made_for_server(folder / "s3_keys.json", json.dumps({"identities": [identity]}))
    [credentials] = json.loads(keys)["identities"][0]["credentials"]
    url = f"://weighbridge:{quote(database, safe='')}@postgres/weighbridge"
    variables = {
        "WEIGHBRIDGE_DATABASE_URL": f"postgresql{url}",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2{url}?options=-csearch_path%3Dmlflow",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg{url}",
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,
        "AWS_ACCESS_KEY_ID": credentials["accessKey"],
        "AWS_SECRET_ACCESS_KEY": credentials["secretKey"],
    }
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    replace_text(folder / "platform.env", lines, mode=0o600)


def _made_for_server(path: Path, fresh: str) -> str:
    """Return what a file holds that is mounted into a server's container, as `made_once` does.

    Compose mounts it with its owner and mode, and a server may run as a user of its own (SeaweedFS
    does since 4.0). What keeps others of this machine away is the folder around it.
    """
    content = made_once(path, fresh, 0o600)
    path.chmod(0o644)
    return content
