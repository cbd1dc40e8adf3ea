"""Have a work pool in Prefect as its base job template says. Imports prefect: import it late."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.flows.pools.base import Template
from weighbridge.flows.pools.templates import PoolType

_BLOCK: Final = re.compile(r"prefect\.blocks\.secret\.([a-z0-9-]+)")
Action = Literal["created", "changed", "unchanged"]


@dataclass(frozen=True)
class Applied:
    """What became of a work pool, or would."""

    pool: str
    kind: PoolType
    action: Action
    changes: list[str] = field(default_factory=list)
    """Each a path in the template, with what it was and what it is."""
    missing_blocks: list[str] = field(default_factory=list)
    """Names of Secret blocks that the template refers to and Prefect does not have."""


def apply_pool(
    pool: str, kind: PoolType, template: Template, limit: int | None, *, dry: bool
) -> Applied:
    """Create a work pool, or change the template of the one that is there.

    Args:
        pool: Its name.
        kind: Its type; that of a pool that exists cannot be changed.
        template: Its base job template.
        limit: Most jobs at once; None leaves it as it is.
        dry: Only say what would be done.

    Raises:
        BadInput: there is one of another type.
        Unavailable: Prefect does not answer, or refuses.
    """
    with _translated(pool), get_client(sync_client=True) as client:
        existing = _read(client, pool)
        if existing is None:
            changes: list[str] = []
            action: Action = "created"
        elif existing.type != kind:
            wrong = f"it is there, and of type {existing.type}"
            remedy = f"give it another name (--pool), or: prefect work-pool delete {pool}"
            raise BadInput(f"applying the work pool {pool}", wrong, remedy)
        else:
            changes = _changes(existing, template, limit)
            action = "changed" if changes else "unchanged"
        if not dry:
            _write(client, pool, kind, template, limit, existing=existing, changed=bool(changes))
        return Applied(pool, kind, action, changes, _missing_blocks(client, template))


def save_secrets(pool: str, values: Mapping[str, str]) -> None:
    """Write values into Secret blocks of Prefect, by name.

    Raises: Unavailable: Prefect does not answer, or refuses.
    """
    from prefect.blocks.system import Secret

    with _translated(pool):
        for name, value in values.items():
            Secret(value=value).save(name, overwrite=True)


def _read(client: SyncPrefectClient, pool: str) -> WorkPool | None:
    try:
        return client.read_work_pool(pool)
    except ObjectNotFound:
        return None


def _write(
    client: SyncPrefectClient,
    pool: str,
    kind: PoolType,
    template: Template,
    limit: int | None,
    *,
    existing: WorkPool | None,
    changed: bool,
) -> None:
    limits = {} if limit is None else {"concurrency_limit": limit}
    if existing is None:
        client.create_work_pool(
            WorkPoolCreate(name=pool, type=kind, base_job_template=template, **limits)
        )
    elif changed:
        client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template, **limits))


def _changes(existing: WorkPool, template: Template, limit: int | None) -> list[str]:
    changes = list(differences(existing.base_job_template, template))
    if limit is not None and limit != existing.concurrency_limit:
        changes.append(f"jobs at once: {existing.concurrency_limit} -> {limit}")
    return changes


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Give a line for each value in which two JSON documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
    elif before != after:
        yield f"{path}: {_shown(before)} -> {_shown(after)}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _missing_blocks(client: SyncPrefectClient, template: Template) -> list[str]:
    names = sorted(set(_BLOCK.findall(str(template))))
    known = {
        document.name
        for document in (client.read_block_documents(include_secrets=False) if names else ())
    }
    return [name for name in names if name not in known]


@contextmanager
def _translated(pool: str) -> Iterator[None]:
    """Raise errors of Prefect's client as ours."""
    doing = f"applying the work pool {pool}"
    try:
        yield
    except httpx.HTTPStatusError as exc:
        wrong = f"Prefect answers {exc.response.status_code}: {exc.response.text[:200]}"
        raise Unavailable(doing, wrong, "check its address and login") from exc
    except httpx.HTTPError as exc:
        wrong = f"Prefect does not answer ({type(exc).__name__})"
        raise Unavailable(doing, wrong, "see: weighbridge status") from exc
