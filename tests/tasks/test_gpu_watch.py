"""Graphics cards as their driver's library tells of them, a stand-in of it in its place."""

import os
import sys
import types
from dataclasses import dataclass, field

import pytest

from tests.waiting import soon
from weighbridge.tasks.gpu_watch import GpuWatch
from weighbridge.tasks.measurement import GpuUse

US = os.getpgid(0)


class NVMLError(Exception):
    """As the library raises it for whatever it cannot tell."""


@dataclass
class Card:
    """What the driver says of one card."""

    used: int = 0
    processes: dict[int, int] = field(default_factory=dict)
    """Bytes by process id."""
    gpu: int | None = 50
    clock: int | None = 1500


class Library(types.ModuleType):
    """Stands in for `pynvml`."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1

    def __init__(self, *cards: Card, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.driver = driver
        self.questions = 0
        self.ended = False

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError

    def nvmlShutdown(self) -> None:
        self.ended = True

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Card:
        return self.cards[number]

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[types.SimpleNamespace]:
        self.questions += 1
        return [
            types.SimpleNamespace(pid=pid, usedGpuMemory=taken)
            for pid, taken in card.processes.items()
        ]

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> types.SimpleNamespace:
        return types.SimpleNamespace(used=card.used)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> types.SimpleNamespace:
        if card.gpu is None:
            raise NVMLError
        return types.SimpleNamespace(gpu=card.gpu)

    def nvmlDeviceGetClockInfo(self, card: Card, kind: int) -> int:
        if card.clock is None:
            raise NVMLError
        return card.clock


def seen(monkeypatch: pytest.MonkeyPatch, library: Library, *, on_gpu: bool) -> GpuUse | None:
    """What is seen of cards in so many looks as come. Give utilizations whose mean is a fraction of
    two: that of many tenths is off by a last digit.
    """
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with GpuWatch(US, on_gpu, interval=0.001) as watch:
        soon(lambda: library.questions > 3 * len(library.cards), 10)
    assert library.ended
    return watch.seen()


def test_the_cards_of_the_engines_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    of_others = Card(used=9 << 30, processes={1: 9 << 30}, gpu=100)
    ours = Card(used=9 << 30, processes={1: 1 << 30, os.getpid(): 2 << 30}, gpu=50)
    assert seen(monkeypatch, Library(of_others, ours), on_gpu=True) == GpuUse(
        cards=1, memory=2 << 30, utilization=0.5, clock_mhz=1500, lowest_clock_mhz=1500
    )


def test_where_the_driver_names_no_process_all_that_is_taken_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = Card(used=1 << 30, gpu=25, clock=1000), Card(used=2 << 30, gpu=75, clock=2000)
    assert seen(monkeypatch, Library(*cards), on_gpu=True) == GpuUse(
        cards=2, memory=3 << 30, utilization=0.5, clock_mhz=1500, lowest_clock_mhz=1000
    )


def test_an_engine_on_the_processor_has_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, Library(Card(used=1 << 30)), on_gpu=False) is None


def test_what_the_driver_cannot_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(Card(used=1 << 30, gpu=None, clock=None))
    assert seen(monkeypatch, library, on_gpu=True) == GpuUse(cards=1, memory=1 << 30)


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(Card(), driver=False))
    with GpuWatch(US, on_gpu=True) as watch:
        pass
    assert watch.seen() is None
