"""The connection to MLflow: finding experiments, translating errors, one change at a time."""

import contextlib
import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.private_folders import make_private
from weighbridge.core.proxies import keep_loopback_direct
from weighbridge.core.settings import Settings
from weighbridge.registry.database import REMEDY, prepare_database
from weighbridge.registry.loading import load_mlflow
from weighbridge.registry.locks import alone
from weighbridge.registry.mlflow_errors import translated, without_secrets, words_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Without it MLflow's UI takes models for agents and shows no metrics beside them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str) -> str:
    """Return the name, which MLflow, BentoML and a shell take alike.

    Raises:
        BadInput: it has other characters than letters, digits, dot, dash and underscore.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"naming a model '{name}'",
            "only letters, digits, '.', '-' and '_' are allowed, beginning with a letter or digit",
            "choose another name",
        )
    return name


@dataclass(frozen=True)
class Connection:
    """A connected MLflow client and where its files go."""

    client: "MlflowClient"
    uri: str
    artifacts: str
    settings: Settings
    _experiments: dict[str, str] = field(default_factory=dict)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, created when it is new."""
        if name not in self._experiments:
            with self.doing(f"opening experiment '{name}' in MLflow"):
                self._experiments[name] = self._find(name) or self._create(name)
        return self._experiments[name]

    def known_experiment(self, name: str) -> str | None:
        """Return the id of an experiment; None where it does not exist."""
        with self.doing(f"opening experiment '{name}' in MLflow"):
            return self._find(name)

    def _find(self, name: str) -> str | None:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return None
        if experiment.lifecycle_stage == "deleted":
            raise BadInput(
                f"opening experiment '{name}' in MLflow",
                "it was deleted there",
                f"restore it (mlflow experiments restore -x {experiment.experiment_id}) "
                "or choose another name",
            )
        return str(experiment.experiment_id)

    def _create(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = f"{self.artifacts.rstrip('/')}/{name}" if self.artifacts else None
        try:
            return str(
                self.client.create_experiment(
                    name, artifact_location=location, tags={_KIND: _TRAINING}
                )
            )
        except MlflowException as exc:
            # Another process was faster.
            existing = self._find(name) if exc.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if existing is None:
                raise
            return existing

    def announced(self) -> "MlflowClient":
        """Return a client whose changes MLflow tells webhooks of, where its server runs.

        Only the server sends webhooks: what is written into its database past it moves unheard.
        """
        ports = service_addresses.read(self.settings.home)
        if ports is None or self.uri.startswith(("http://", "https://")):
            return self.client
        url = ports.url("mlflow")
        with contextlib.suppress(OSError, ValueError):
            # Asked the way MLflow's client asks, by the user's proxy where there is one: it would
            # try again for minutes.
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            server = type(self.client)(tracking_uri=url, registry_uri=url)
            # After `down`, the port may be that of another installation's server.
            if (born := _database_born(server)) and born == _database_born(self.client):
                return server
        return self.client

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Raise whatever MLflow raises inside as Unavailable, in one line."""
        with translated(what, f"look at MLflow at {without_secrets(self.uri)}"):
            yield

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keep everybody else out of the same change; not to be nested."""
        with alone(what, self.settings):
            yield


def connect(settings: Settings) -> Connection:
    """Connect to the MLflow that the settings name.

    Raises:
        Unavailable: the server does not answer, or the database cannot be opened.
    """
    uri = settings.mlflow_uri()
    make_private(settings.home)
    keep_loopback_direct()
    if uri.startswith(("http://", "https://")):
        uri = _logged_in(uri)
        _knock(uri)
    # The user's own server keeps files where it was told to, unless the user tells us otherwise.
    own_files = not settings.tracking_uri or bool(settings.artifact_root)
    artifacts = settings.mlflow_artifacts() if own_files else ""
    with translated(f"opening MLflow at {without_secrets(uri)}", REMEDY):
        client = _open(uri, settings)
    return Connection(client, uri, artifacts, settings)


def _open(uri: str, settings: Settings) -> "MlflowClient":
    with warnings.catch_warnings():
        # MLflow's dependencies deprecate what MLflow uses; nobody here can do anything about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        client_class = load_mlflow(fast=settings.fast_start)
        prepare_database(settings)
        client = client_class(tracking_uri=uri, registry_uri=uri)
        # MLflow opens a store when it is first asked: an error comes here, and not in a stage.
        client.get_experiment_by_name("Default")
        client.search_registered_models(max_results=1)
    return client


def _database_born(client: "MlflowClient") -> int:
    """Return when MLflow's first experiment was made, in milliseconds: no two databases share it.

    0 where it cannot be read.
    """
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        return int(client.get_experiment("0").creation_time or 0)
    return 0


def _logged_in(uri: str) -> str:
    """Return a server's address without the user and password in it, which MLflow's client gets
    by its own variables: so they are in no message, log or page.
    """
    try:
        url = urlsplit(uri)
    except ValueError:
        return uri  # asking it says what is wrong
    login, separator, host = url.netloc.rpartition("@")
    if not separator:
        return uri
    user, _, password = login.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return urlunsplit(url._replace(netloc=host))


def _knock(uri: str) -> None:
    """Raise Unavailable where no server answers: MLflow's client would try again for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers; what it thinks of us comes with the first real call
    except (OSError, ValueError, HTTPException) as exc:
        raise Unavailable(
            f"connecting to MLflow at {without_secrets(uri)}",
            words_of(exc),
            "start the server, or unset WEIGHBRIDGE_TRACKING_URI",
        ) from exc
