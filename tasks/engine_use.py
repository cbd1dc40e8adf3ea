"""What an engine took while it was weighed, as texts: start, warm-up, processor, cache, cards."""

from collections.abc import Callable, Sequence

from weighbridge.core.formatting import UNKNOWN, human_seconds, human_size
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import GpuUse, Measurement


def engine_use_rows(measurements: Sequence[Measurement]) -> list[dict[str, str]]:
    """Return a row for each candidate that was measured, all with the same columns."""
    measured = [one for one in measurements if one.load]
    rows = [
        {"candidate": one.candidate.label, **engine_use(one.load_seconds, one.load, one.gpu)}
        for one in measured
    ]
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, UNKNOWN) for column in columns} for row in rows]


def engine_use(
    load_seconds: float, load: Sequence[LoadFigures], gpu: GpuUse | None
) -> dict[str, str]:
    """Return what one engine took, by title; without what nobody measured.

    Args:
        load_seconds: From its start to the first token.
        load: Its figures at each concurrency.
        gpu: Of its graphics cards.
    """
    use = {"first token after its start": human_seconds(load_seconds)} if load_seconds else {}
    at = f" at {' / '.join(str(level.concurrency) for level in load)}"
    if any(level.warm_up_requests for level in load):
        use[f"warm-up requests{at}"] = _each(
            load, lambda of: f"{of.warm_up_requests} in {human_seconds(of.warm_up_seconds)}"
        )
    if any(level.cpu_seconds is not None for level in load):
        use[f"CPU per request{at}"] = _each(load, _cpu)
    if any(level.cached_share is not None for level in load):
        use[f"prompts found in its cache{at}"] = _each(load, _cached)
    if gpu:
        use["graphics cards under load"] = _cards(gpu)
    return use


def _each(load: Sequence[LoadFigures], shown: Callable[[LoadFigures], str]) -> str:
    return " / ".join(map(shown, load))


def _cpu(level: LoadFigures) -> str:
    spent = level.cpu_seconds_per_request
    return UNKNOWN if spent is None else human_seconds(spent)


def _cached(level: LoadFigures) -> str:
    return UNKNOWN if level.cached_share is None else f"{level.cached_share:.0%}"


def _cards(gpu: GpuUse) -> str:
    parts = [f"{gpu.cards}, {human_size(gpu.memory)}"]
    if gpu.utilization is not None:
        parts.append(f"busy {gpu.utilization:.0%} of the time")
    if gpu.clock_mhz is not None and gpu.lowest_clock_mhz is not None:
        parts.append(f"{gpu.clock_mhz:,.0f} MHz, at least {gpu.lowest_clock_mhz:,.0f}")
    return ", ".join(parts)
