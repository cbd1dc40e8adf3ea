"""What we need of MLflow, done once: `weighbridge compat` runs this against newer releases of
everything.

Each needs `WEIGHBRIDGE_HOME` to be a folder of its own.
"""

import os

from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.registry import mlflow_internals
from weighbridge.registry.api import Registry
from weighbridge.registry.loading import load_mlflow
from weighbridge.registry.versions import Role, Version
from weighbridge.registry.webhooks import EVENTS, NAME


def a_version_is_registered() -> None:
    """Make a run with its curve, a version with its lineage and alias, and a webhook, on a new
    SQLite database.
    """
    os.environ |= {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    workspace = Workspace(Settings())
    registry = Registry.connect(workspace.settings)
    with registry.release("contract", 1, params={"r": 4}, tags={"recipe": "contract"}) as run:
        run.log_step(1, {"loss": 0.5})
        versions: list[Version] = []
        roles: tuple[Role, ...] = ("base", "merged")
        for role in roles:
            with workspace.store.scratch() as scratch:
                (scratch / "weights.bin").write_text(role)
                artifact = workspace.store.add(scratch, "safetensors", {"uri": "made up"})
            parent = versions[-1] if versions else None
            versions.append(registry.register("contract", role, artifact, run=run, parent=parent))
    registry.promote(versions[1])
    champion = registry.champion("contract")
    assert champion is not None, "the alias names nothing"
    assert (champion.version, champion.parent) == ("2", "1"), (
        f"the champion reads back as {champion}"
    )
    client = registry.connection.client
    client.create_webhook(
        NAME, "http://127.0.0.1:1/hook", list(EVENTS), description="A contract.", secret="secret"
    )
    (hook,) = client.list_webhooks(max_results=10, page_token=None)
    assert hook.name == NAME, f"the webhook reads back as {hook}"


def the_names_inside_mlflow_are_there() -> None:
    """Take all that `mlflow_internals` takes from inside MLflow; without it, a start is slow."""
    home = Settings().home
    home.mkdir(parents=True, exist_ok=True)
    mlflow_internals.import_lean()
    mlflow_internals.replace_command_by_server()
    mlflow_internals.make_sqlite(home / "contract.db")
    # Another way to the same tables: it finds them, and has nothing to do.
    mlflow_internals.make_tables(f"sqlite:///{home / 'contract.db'}")
    client = load_mlflow()(tracking_uri=f"sqlite:///{home / 'contract.db'}")
    assert client.search_registered_models() == [], "the tables are not those of the client"
