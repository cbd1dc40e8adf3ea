"""Bindings of models to targets: kept in MLflow on the registered model, as tags."""

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import BadInput
from weighbridge.core.versions import own_version
from weighbridge.registry.connection import Connection, checked_name

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

_TAG = "weighbridge.target."
_LONGEST_TAG = 5000
"""Characters that servers of MLflow have always taken as a tag; newer ones take more."""


class Binding(BaseModel):
    """A target, and the model whose champion it serves."""

    model_config = ConfigDict(frozen=True)

    target: str
    model: str
    deploy: dict[str, Any] = Field(description="The recipe's `deploy` arguments, as JSON.")
    since: float = Field(
        0.0, description="Unix time at which these arguments were given; 0: not known."
    )
    written_by: str = Field("", description="Version of Weighbridge that wrote them.")


def bind(connection: Connection, binding: Binding) -> Binding:
    """Let a target serve the champion of this model, and of no other.

    Returns:
        The binding with the time of its arguments, which is later than that of any before.

    Raises:
        BadInput: the deploy arguments are too long.
    """
    doing = f"noting target '{checked_name(binding.target)}' on model '{binding.model}' in MLflow"
    with connection.doing(doing), connection.alone(f"place-{binding.target}"):
        claims = dict(_claims(connection, binding.target))
        if (
            claims
            and _newest(claims) == binding.model
            and claims[binding.model]["deploy"] == binding.deploy
        ):
            _delete_claims(connection, binding.target, claims.keys() - {binding.model})
            known = claims[binding.model]
            writer = known.get("written_by", "")
            return binding.model_copy(update={"since": known["since"], "written_by": writer})
        # Set first, others deleted then: a process that is killed between leaves two claims, never
        # none.
        latest = claims[_newest(claims)]["since"] if claims else 0.0
        # Later than any other, whatever the clocks of two machines say.
        since = max(binding.since or time.time(), math.nextafter(latest, math.inf))
        claim = {"deploy": binding.deploy, "since": since, "written_by": own_version()}
        text = json.dumps(claim)
        if len(text) > _LONGEST_TAG:
            raise BadInput(
                doing,
                f"the deploy arguments are longer than {_LONGEST_TAG} characters",
                "shorten them",
            )
        connection.client.set_registered_model_tag(
            checked_name(binding.model), _TAG + binding.target, text
        )
        _delete_claims(connection, binding.target, claims.keys() - {binding.model})
        return binding.model_copy(update={"since": since, "written_by": claim["written_by"]})


def all_bindings(connection: Connection) -> list[Binding]:
    """Return the binding of every target, by name.

    Of two models that claim a target the later claim holds: its process was killed before it could
    delete the other.
    """
    with connection.doing("reading the targets in MLflow"):
        models = list(_models(connection))
    targets = {key for model in models for key in model.tags if key.startswith(_TAG)}
    return [_binding(tag, models) for tag in sorted(targets)]


def _binding(tag: str, models: "list[RegisteredModel]") -> Binding:
    claims = {model.name: json.loads(model.tags[tag]) for model in models if tag in model.tags}
    model = _newest(claims)
    claim = claims[model]
    return Binding(
        target=tag.removeprefix(_TAG),
        model=model,
        deploy=claim["deploy"],
        since=claim["since"],
        written_by=claim.get("written_by", ""),
    )


def _newest(claims: dict[str, dict[str, Any]]) -> str:
    return max(claims, key=lambda model: float(claims[model]["since"]))


def _claims(connection: Connection, target: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for model in _models(connection):
        if text := model.tags.get(_TAG + target):
            yield model.name, json.loads(text)


def _delete_claims(
    connection: Connection, target: str, models: "set[str] | dict[str, Any]"
) -> None:
    for model in models:
        connection.client.delete_registered_model_tag(model, _TAG + target)


def _models(connection: Connection) -> "Iterator[RegisteredModel]":
    token = None
    while True:
        # MLflow refuses to be asked for more at once.
        page = connection.client.search_registered_models(max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return
