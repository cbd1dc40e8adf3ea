"""Records in a shared place: no change is lost, and of two deployers only one acts."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.stand_ins.shared_place import MemoryPlace
from tests.waiting import until
from weighbridge.core.errors import Unavailable
from weighbridge.serving.targets import shared_records
from weighbridge.serving.targets.records import COMMANDS, LEDGER, STATE, LockLost, TargetLocked
from weighbridge.serving.targets.shared_records import SharedRecords


@pytest.fixture
def place() -> Iterator[MemoryPlace]:
    place = MemoryPlace("records of a test")
    yield place
    shared_records._SEEN.pop(place.name, None)


@pytest.fixture
def records(place: MemoryPlace) -> SharedRecords:
    return SharedRecords(place)


def put(records: SharedRecords, content: bytes) -> None:
    records.change(STATE, lambda _: content)


def test_what_is_written_is_read_back_and_an_empty_document_is_none(records: SharedRecords) -> None:
    assert records.read(STATE).content == b""
    put(records, "ü".encode())
    assert records.read(STATE).content == "ü".encode()
    assert records.read(STATE).changed_at > 0
    assert records.read(COMMANDS).content == b""
    put(records, b"")
    assert records.read(STATE).changed_at == 0


def test_of_changes_at_once_none_is_lost(records: SharedRecords) -> None:
    def add(number: int) -> None:
        records.append(LEDGER, lambda _: b"%d" % number)
        records.change(COMMANDS, lambda content: b"%d" % (int(content or 0) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(40)))
    lines = records.read(LEDGER).content.splitlines()
    assert sorted(map(int, lines)) == list(range(40))
    assert records.read(COMMANDS).content == b"40"


def test_a_change_that_changes_nothing_writes_nothing(
    records: SharedRecords, place: MemoryPlace
) -> None:
    put(records, b"1")
    version = place.versions["documents"]
    records.change(STATE, lambda content: None)
    assert place.versions["documents"] == version


def test_a_change_goes_by_what_was_seen_last_and_looks_again_only_where_that_is_old(
    records: SharedRecords, place: MemoryPlace
) -> None:
    put(records, b"1")
    reads = place.reads
    records.append(LEDGER, lambda _: b"a")
    records.change(STATE, lambda content: content + b"2")
    assert place.reads == reads
    SharedRecords(place).append(LEDGER, lambda _: b"b")
    records.append(LEDGER, lambda content: b"after %s" % content.replace(b"\n", b" "))
    assert records.read(LEDGER).content == b"a\nb\nafter a b \n"
    assert records.read(STATE).content == b"12"


def test_that_nothing_is_to_be_changed_is_not_decided_by_an_old_look(
    records: SharedRecords, place: MemoryPlace
) -> None:
    put(records, b"1")
    put(SharedRecords(place), b"2")
    records.change(STATE, lambda content: b"3" if content == b"2" else None)
    assert records.read(STATE).content == b"3"


def test_a_look_that_a_write_has_overtaken_is_not_what_was_seen_last(
    records: SharedRecords, place: MemoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(records, b"1")
    read = place.read_documents

    def overtaken() -> tuple[Mapping[str, str], str]:
        monkeypatch.undo()
        seen = read()
        put(records, b"2")  # as another thread does
        return seen

    monkeypatch.setattr(place, "read_documents", overtaken)
    assert records.read(STATE).content == b"1"
    assert records.glance(STATE) == b"2"


def test_the_lock_is_one_holders_and_free_again_after_it(records: SharedRecords) -> None:
    with records.lock(wait=False):
        assert records.is_locked()
        with pytest.raises(TargetLocked), records.lock(wait=False):
            pass
    assert not records.is_locked()
    with records.lock(wait=False):
        pass


def test_whoever_waits_gets_the_lock_when_it_is_given_back(
    records: SharedRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedRecords, "POLL", 0.001)
    order: list[str] = []

    def wait() -> None:
        with records.lock(wait=True):
            order.append("second")

    with records.lock(wait=True):
        waiting = threading.Thread(target=wait)
        waiting.start()
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


def test_a_lock_whose_holder_is_dead_is_taken_when_its_lease_has_run_out_and_not_before(
    records: SharedRecords, place: MemoryPlace
) -> None:
    with records.lock(wait=False):
        place.cut_holder_off()
    assert records.is_locked()
    with pytest.raises(TargetLocked), records.lock(wait=False):
        pass
    place.let_lease_run_out()
    assert not records.is_locked()
    with records.lock(wait=False) as locked:
        put(locked, b"mine")
    assert records.read(STATE).content == b"mine"


def test_a_holder_that_stood_still_until_another_took_the_lock_changes_nothing(
    records: SharedRecords, place: MemoryPlace
) -> None:
    with records.lock(wait=False) as first:
        put(first, b"first")
        place.let_lease_run_out()
        with records.lock(wait=False) as second:
            put(second, b"second")
            for act in (
                lambda: put(first, b"late"),
                lambda: first.append(LEDGER, lambda _: b"late"),
                lambda: first.read(STATE),
            ):
                with pytest.raises(LockLost, match="another deployer has taken it"):
                    act()
    assert records.read(STATE).content == b"second"
    assert records.read(LEDGER).content == b""
    assert not records.is_locked(), "the first did not give back what was the second's"


def test_a_holder_that_was_overtaken_between_its_look_and_its_write_changes_nothing(
    records: SharedRecords, place: MemoryPlace
) -> None:
    with records.lock(wait=False) as first:

        def change(content: bytes) -> bytes:
            if not content:
                place.let_lease_run_out()
                with records.lock(wait=False) as second:
                    put(second, b"second")
            return b"late"

        with pytest.raises(LockLost):
            first.change(STATE, change)
    assert records.read(STATE).content == b"second"


def test_a_holder_that_can_not_renew_its_lease_stops_before_others_may_take_it(
    records: SharedRecords, place: MemoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedRecords, "LEASE_SECONDS", 0.06)
    with records.lock(wait=False) as locked:
        place.cut_holder_off()
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.05)
        with pytest.raises(LockLost, match="could not be renewed"):
            locked.read(STATE)


def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    records: SharedRecords, place: MemoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedRecords, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(threading.Event, "wait", _hundredfold(threading.Event.wait))
    with records.lock(wait=False):
        first = place.versions["lease"]

        def is_renewed() -> bool:
            assert records.is_locked()
            return place.versions["lease"] >= first + 3

        until(is_renewed)
    assert place.lease.holder == ""


def test_a_renewal_that_was_done_and_not_answered_loses_no_lock(
    records: SharedRecords, place: MemoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedRecords, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(threading.Event, "wait", _hundredfold(threading.Event.wait))
    with records.lock(wait=False) as locked:
        with place._lock:
            place.versions["lease"] += 1
        version = place.versions["lease"]

        def is_renewed() -> bool:
            locked.read(STATE)
            return place.versions["lease"] != version

        until(is_renewed)


def test_locks_are_numbered_on_also_where_somebody_removed_the_lease(
    records: SharedRecords, place: MemoryPlace
) -> None:
    with records.lock(wait=False) as first:
        place.lease = shared_records.Lease()
        with records.lock(wait=False) as second:
            put(second, b"second")
            with pytest.raises(LockLost):
                put(first, b"late")


def test_a_glance_is_not_stopped_by_a_place_that_is_away_for_a_moment(
    records: SharedRecords, place: MemoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.change(COMMANDS, lambda _: b"pause")
    with records.lock(wait=False) as locked:
        assert locked.glance(COMMANDS) == b"pause"
        monkeypatch.setattr(SharedRecords, "GLANCE", 0.0)
        place.is_away = True
        assert locked.glance(COMMANDS) == b"pause"
        with pytest.raises(Unavailable):
            records.glance(COMMANDS)
        place.is_away = False
        records.change(COMMANDS, lambda _: b"resume")
        assert locked.glance(COMMANDS) == b"resume"


def test_many_glances_are_few_reads(records: SharedRecords, place: MemoryPlace) -> None:
    records.glance(COMMANDS)
    place.is_away = True
    assert records.glance(COMMANDS) == b""


def _hundredfold(wait):  # type: ignore[no-untyped-def]
    return lambda event, timeout=None: wait(event, None if timeout is None else timeout / 100)
