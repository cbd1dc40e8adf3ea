"""Monitor: does what serves still answer as it did when it was weighed? Two falls in a row go back by themselves."""

import logging
import time
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from weighbridge.core.errors import GateFailed, WeighbridgeError
from weighbridge.core.files import replace_text
from weighbridge.core.workspace import Workspace
from weighbridge.flows.events import announce, rolled_back
from weighbridge.flows.prefect_adapter import release_flow
from weighbridge.flows.redeploy import place_of
from weighbridge.registry import Place, Registry, Version
from weighbridge.rollout import monitor as checks
from weighbridge.rollout import probe, target_status
from weighbridge.rollout import reconcile as work
from weighbridge.rollout.champion import find_measured
from weighbridge.rollout.managed_target import Site
from weighbridge.rollout.monitor import Check
from weighbridge.rollout.sequential_test import Judged
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.metrics import figures, since
from weighbridge.serving.targets.base import Revision

logger = logging.getLogger("weighbridge.monitor")

KEPT = 50


class Log(BaseModel):
    """What was seen at a target, beside its record."""

    checks: list[Check] = []
    server: str = ""
    counters: dict[str, float] = {}


@release_flow(name="monitor", flow_run_name="monitor")
def monitor(
    target: Annotated[str, Field(description="As in `weighbridge status`; empty: every target.")] = "",
) -> Any:
    """Ask live endpoints their probe questions, and note that and the gateway's figures in MLflow.

    A version that fell below the recipe's floor twice in a row is taken back: the alias names the one before.
    """
    from prefect.states import Completed

    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    places = [place_of(target, registry)] if target else registry.places()
    outcomes = {place.target: _one(place, registry, workspace) for place in places}
    words = "; ".join(f"{name}: {told}" for name, (_, told) in outcomes.items())
    if not all(well for well, _ in outcomes.values()):
        raise GateFailed("monitoring", words)
    return Completed(message=words or "no targets")


def _one(place: Place, registry: Registry, workspace: Workspace) -> tuple[bool, str]:
    """Whether the target is well, and what was found."""
    try:
        return look(place, registry, workspace)
    except WeighbridgeError as exc:
        logger.warning("%s: %s", place.target, exc)
        return False, str(exc)


def look(place: Place, registry: Registry, workspace: Workspace) -> tuple[bool, str]:
    """One look at one target; goes back if it is the second fall in a row.

    Raises:
        WeighbridgeError: it cannot be looked at, or not gone back.
    """
    site = work.site_of(place, workspace)
    record = site.load()
    if record.current is None:
        return True, "nothing serves here"
    if record.rollout is not None:
        return True, "a rollout is under way: it judges by itself"
    version = registry.version(record.current.release.name, record.current.release.version)
    judged = _ask(site, record.current, version, registry)
    log = _read(site)
    seen = {**judged.evidence, **_counted(site, record.current, log)}
    check = Check(version=version.version, verdict=judged.verdict, at=time.time())
    log.checks = [*log.checks, check][-KEPT:]
    _write(site, log)
    registry.note(version, place.target, {**seen, **_as_number(judged)}, int(check.at))
    logger.info("%s: version %s: %s: %s", place.target, version.version, judged.verdict, judged.why)
    if checks.fallen(log.checks, version.version):
        return False, _back(place, version, judged, registry, workspace)
    return judged.verdict in ("pass", "inconclusive"), f"version {version.version}: {judged.verdict}: {judged.why}"


def _ask(site: Site, current: Revision, version: Version, registry: Registry) -> Judged:
    champion = find_measured(registry, version)
    if champion is None:
        return Judged(verdict="inconclusive", why="it was never weighed", evidence={})
    args, measurement = site.args.monitor, champion.measurement
    questions = probe.questions_of(measurement, site.workspace.store, args.questions)
    url, headers = _door(site, current)
    return checks.check(
        url, measurement, questions, args.floor, metric=args.metric, max_tokens=measurement.max_new_tokens,
        headers=headers,
    )  # fmt: skip


def _door(site: Site, current: Revision) -> tuple[str, dict[str, str]]:
    """Where clients come in, with our own key; past a TLS gateway, whose certificate is for another name."""
    address = site.target.address(site.args.target)
    if getattr(site.args.target, "gateway", None) is None:
        return address, {}
    if address.startswith("https://"):
        return current.url, {}
    return address, {"X-Weighbridge-Version": current.name, "Authorization": f"Bearer {Gateway(site.home).key}"}


def _counted(site: Site, current: Revision, log: Log) -> dict[str, float]:
    """What the gateway counted since the last look; the log is brought up to date."""
    if getattr(site.args.target, "gateway", None) is None:
        return {}
    now = figures(Gateway(site.home).metrics_port, site.name, current.name)
    before = log.counters if log.server == current.name else {}
    log.server, log.counters = current.name, now
    return {f"gateway.{key}": value for key, value in since(before, now).items()} if now else {}


def _as_number(judged: Judged) -> dict[str, float]:
    """A verdict as a curve: 1 well, 0 fallen; nothing where it cannot be told."""
    return {"well": float(judged.verdict == "pass")} if judged.verdict in ("pass", "fail") else {}


def _back(place: Place, version: Version, judged: Judged, registry: Registry, workspace: Workspace) -> str:
    """The alias names the version before again, and that one serves.

    Where the alias has moved on meanwhile, somebody has decided already.
    """
    wish = registry.wish(place.model)
    if wish is None or wish.version != version.version:
        return f"version {version.version} fell twice in a row; the alias has moved on"
    before = target_status.rollback_version(place.target, workspace)
    logger.warning("%s: version %s fell twice in a row: back to %s", place.target, version.version, before)
    registry.promote(registry.version(place.model, before))
    announce(rolled_back(place.target, place.model, version.version, before, judged.why))
    result = work.redeploy(place, registry, workspace, "monitor", force=True)
    return f"version {version.version} fell twice in a row ({judged.why}); back to {before}: {result.detail}"


def _read(site: Site) -> Log:
    try:
        return Log.model_validate_json((site.folder / "checks.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return Log()


def _write(site: Site, log: Log) -> None:
    replace_text(site.folder / "checks.json", log.model_dump_json())
