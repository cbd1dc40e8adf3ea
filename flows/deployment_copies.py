"""What Prefect has made of `prefect.yaml`, kept to make the same deployments in another home.

`prefect deploy` imports Prefect's command and every flow for that, which takes five seconds of a
processor. What it sends depends on our code and on Prefect's alone, and on no home but by its path.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from weighbridge.core.files import replace_text

_TAKEN: Final = (
    *("name", "description", "version", "paused", "tags", "path", "entrypoint"),
    *("parameters", "parameter_openapi_schema", "enforce_parameter_schema"),
    *("pull_steps", "work_pool_name", "job_variables", "concurrency_options"),
)
"""Fields that Prefect takes as it gives them."""
_TAKEN_OF_SCHEDULES: Final = ("schedule", "active", "slug", "parameters", "max_scheduled_runs")
_HOME: Final = "{home}"


class Copy(BaseModel):
    """A deployment as Prefect's API takes one, but for the id of its flow."""

    flow: str
    body: dict[str, Any]


class _Kept(BaseModel):
    digest: str
    prefect: str
    copies: list[Copy]


def keep(
    cache: Path,
    digest: str,
    home: Path,
    deployments: Sequence[Mapping[str, Any]],
    flows: Mapping[str, str],
) -> None:
    """Keep deployments for other homes of this machine.

    Args:
        cache: The machine's.
        digest: Of the code that they are made of.
        home: Whose they are.
        deployments: As Prefect's API gives them.
        flows: Names of flows by their ids.
    """
    copies = [Copy(flow=flows[one["flow_id"]], body=_body(one)) for one in deployments]
    text = _Kept(digest=digest, prefect=version("prefect"), copies=copies).model_dump_json()
    replace_text(file_in(cache), text.replace(_quoted(home), json.dumps(_HOME)))


def kept(cache: Path, digest: str, home: Path) -> Iterator[Copy]:
    """Yield the deployments that were kept of this code, for a home; none where there are none."""
    # ValueError: the file of another release.
    with suppress(FileNotFoundError, ValueError):
        text = file_in(cache).read_text().replace(json.dumps(_HOME), _quoted(home))
        found = _Kept.model_validate_json(text)
        if (found.digest, found.prefect) == (digest, version("prefect")):
            yield from found.copies


def file_in(cache: Path) -> Path:
    """Return the file for this Python: another one may have other code, and other plugins."""
    python = hashlib.sha256(sys.executable.encode()).hexdigest()[:16]
    return cache / "deployments" / f"{python}.json"


def _quoted(home: Path) -> str:
    """Return the path as it stands in JSON; Prefect knows the working directory without links."""
    return json.dumps(str(home.resolve()), ensure_ascii=False)


def _body(deployment: Mapping[str, Any]) -> dict[str, Any]:
    limit = deployment["global_concurrency_limit"]
    schedules = [
        {name: schedule[name] for name in _TAKEN_OF_SCHEDULES}
        for schedule in deployment["schedules"]
    ]
    # Prefect's own, such as its flow's id, are of this home: the next one gives others.
    labels = {
        name: label
        for name, label in deployment["labels"].items()
        if not name.startswith("prefect.")
    }
    return {
        **{name: deployment[name] for name in _TAKEN},
        "labels": labels,
        "schedules": schedules,
        "concurrency_limit": limit and limit["limit"],
    }
