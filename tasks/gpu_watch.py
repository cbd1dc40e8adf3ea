"""What an engine takes of NVIDIA's graphics cards while it is loaded, as their driver tells it.

By NVML, the library of `nvidia-smi`; on a machine without the driver nothing is told.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final, cast

from weighbridge.core.processes import members
from weighbridge.tasks.measurement import GpuUse

INTERVAL: Final = 0.5
"""Seconds between two looks: the driver's own utilization is of up to a second."""


@dataclass(frozen=True)
class _Sample:
    cards: int
    memory: int
    utilization: float | None
    clocks: tuple[float, ...]


class GpuWatch:
    """Looks at the cards of a process group again and again until stopped."""

    def __init__(self, group: int, on_gpu: bool, interval: float = INTERVAL) -> None:
        """Keep whom to look for.

        Args:
            group: Of the engine's processes.
            on_gpu: Whether it runs on a card even where the driver names none of its processes.
            interval: Seconds between two looks.
        """
        self._group = group
        self._on_gpu = on_gpu
        self._interval = interval
        self._samples: list[_Sample] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuWatch:
        if nvml := _nvml():
            self._thread = threading.Thread(target=self._watch, args=[nvml], daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def seen(self) -> GpuUse | None:
        """Return what was seen; None where the engine was on no card, or no driver is here."""
        if not self._samples:
            return None
        used = [sample.utilization for sample in self._samples if sample.utilization is not None]
        clocks = [clock for sample in self._samples for clock in sample.clocks]
        return GpuUse(
            cards=max(sample.cards for sample in self._samples),
            memory=max(sample.memory for sample in self._samples),
            utilization=statistics.fmean(used) if used else None,
            clock_mhz=statistics.fmean(clocks) if clocks else None,
            lowest_clock_mhz=min(clocks, default=None),
        )

    def _watch(self, nvml: Any) -> None:
        try:
            while True:
                if sample := self._sample(nvml):
                    self._samples.append(sample)
                if self._done.wait(self._interval):
                    return
        finally:
            _told(nvml, nvml.nvmlShutdown)

    def _sample(self, nvml: Any) -> _Sample | None:
        pids = {process.pid for process in members(self._group)}
        cards = [_Card(nvml, number) for number in range(_told(nvml, nvml.nvmlDeviceGetCount) or 0)]
        own = [(card, taken) for card in cards if (taken := card.bytes_of(pids))]
        if not own and self._on_gpu:
            own = [(card, card.bytes_taken()) for card in cards]
        if not own:
            return None
        rates = [rate for card, _ in own if (rate := card.utilization()) is not None]
        clocks = [clock for card, _ in own if (clock := card.clock()) is not None]
        return _Sample(
            len(own),
            sum(taken for _, taken in own),
            statistics.fmean(rates) if rates else None,
            tuple(clocks),
        )


class _Card:
    """One card. What its driver does not tell, as of a part of a card (MIG), is None or 0."""

    def __init__(self, nvml: Any, number: int) -> None:
        self._nvml = nvml
        self._handle = _told(nvml, nvml.nvmlDeviceGetHandleByIndex, number)

    def bytes_of(self, pids: Container[int]) -> int:
        """Return the bytes that these processes have on it."""
        running = self._ask("nvmlDeviceGetComputeRunningProcesses") or []
        return sum(one.usedGpuMemory or 0 for one in running if one.pid in pids)

    def bytes_taken(self) -> int:
        """Return the bytes that are taken, by whomever."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return int(memory.used) if memory else 0

    def utilization(self) -> float | None:
        """Return in which part of the last moments it computed."""
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        return rates.gpu / 100 if rates else None

    def clock(self) -> float | None:
        """Return the MHz of its multiprocessors."""
        return cast("float | None", self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM))

    def _ask(self, question: str, *arguments: object) -> Any:
        if self._handle is None:
            return None
        return _told(self._nvml, getattr(self._nvml, question), self._handle, *arguments)


def _told(nvml: Any, question: Callable[..., Any], *arguments: object) -> Any:
    """Return what NVML answers; None where it cannot tell."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _nvml() -> Any:
    """Return the library, initialized; None where it or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return pynvml
