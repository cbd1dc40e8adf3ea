"""The ledger's first copy: no line is lost or swallowed, whatever happens while it is written or
mirrored.
"""

from pathlib import Path

import pytest

from tests.stand_ins.shared_place import MemoryPlace
from weighbridge.core.errors import Unavailable
from weighbridge.registry.ledger import record_of
from weighbridge.rollout.outbox import Outbox
from weighbridge.serving.targets.base import Release
from weighbridge.serving.targets.home_records import HomeRecords
from weighbridge.serving.targets.records import LEDGER
from weighbridge.serving.targets.shared_records import SharedRecords

CONFIG_MAP = 1024 * 1024
"""Bytes that Kubernetes takes as the data of one."""
FIGURES = {f"asked_latency_ratio_below_{n}": 0.1234 for n in range(20)}


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(HomeRecords(tmp_path / "shop"))


def _file(tmp_path: Path) -> Path:
    return tmp_path / "shop" / "ledger.jsonl"


def test_lines_are_numbered_within_their_rollout(outbox: Outbox) -> None:
    for rollout in ("a", "b", "a"):
        outbox.write(rollout, "shift", share=10)
    assert [(line.rollout, line.n) for line in outbox.entries()] == [("a", 0), ("b", 0), ("a", 1)]


def test_a_line_that_a_crash_cut_off_is_not_there_and_swallows_no_other(
    outbox: Outbox, tmp_path: Path
) -> None:
    outbox.write("a", "begin", why="übel")
    whole = _file(tmp_path).read_bytes()
    for cut in range(1, len(whole)):
        _file(tmp_path).write_bytes(whole + whole[:cut])
        outbox.write("b", "begin")
        # Without its end of line alone, a line is whole.
        assert [line.rollout for line in outbox.entries()] == (
            ["a", "b"] if cut < len(whole) - 1 else ["a", "a", "b"]
        )


def test_words_with_line_breaks_of_any_kind_come_back(outbox: Outbox) -> None:
    text = "a\nb\r\nc\u2028d\x85e\x0cf"
    outbox.write("a", "back", why=text)
    assert [line.fields["why"] for line in outbox.entries()] == [text]


def test_what_was_mirrored_is_not_told_again(outbox: Outbox) -> None:
    outbox.write("a", "begin")
    outbox.mirrored(1)
    outbox.write("a", "end")
    assert [line.event for line in outbox.unmirrored()] == ["end"]


def test_the_file_starts_anew_when_all_of_it_is_mirrored_and_every_rollout_has_ended(
    outbox: Outbox, tmp_path: Path
) -> None:
    outbox.write("a", "begin")
    outbox.mirrored(1)
    assert _file(tmp_path).exists()
    outbox.write("a", "end")
    outbox.mirrored(1, keep=True)
    assert _file(tmp_path).exists()
    outbox.mirrored(0)
    assert not _file(tmp_path).exists()
    outbox.write("b", "begin")
    assert [line.rollout for line in outbox.unmirrored()] == ["b"]


def test_lines_written_while_mlflow_was_told_others_are_told_next(outbox: Outbox) -> None:
    outbox.write("a", "begin")
    count = len(outbox.unmirrored())
    outbox.write("a", "end")
    outbox.mirrored(count)
    assert [line.event for line in outbox.unmirrored()] == ["end"]


def test_a_crash_while_the_file_starts_anew_loses_no_later_line(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.write("a", "begin")
    outbox.mirrored(1)
    outbox.write("a", "end")
    unlink, count = Path.unlink, 0

    def once(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise Unavailable("removing a file", "it died here")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", once)
        with pytest.raises(Unavailable):
            outbox.mirrored(1)
    outbox.write("b", "begin")
    assert "b" in {line.rollout for line in outbox.unmirrored()}


def test_a_rollout_without_an_end_is_known(outbox: Outbox) -> None:
    for rollout in ("a", "b"):
        outbox.write(rollout, "begin")
    outbox.write("a", "end")
    assert (outbox.ended("a"), outbox.ended("b"), outbox.unended()) == (True, False, ["b"])


@pytest.fixture
def small() -> Outbox:
    """One whose records have room for a few hundred rollouts, as a ConfigMap does."""
    return Outbox(SharedRecords(MemoryPlace("an outbox")))


def promote(outbox: Outbox, number: int, *, end: bool = True) -> str:
    """Have the outbox tell of a rollout in as many bytes as one takes in a cluster."""
    rollout, digest = f"{number:032x}", f"sha256:{number:064x}"
    release = Release(name="demo", version=str(number), bento=f"demo:{number}", digest=digest)
    outbox.write_begin(rollout, "shop", release, None, "webhook")
    outbox.write(rollout, "waiting", why="ErrImagePull: rpc error: code = NotFound")
    for share in (20, 100):
        shown = "at 20 % of the traffic: no sign of harm in 3 requests"
        outbox.write(rollout, "shift", share=share, shown=shown)
    if end:
        outbox.write_end(rollout, "serving", "pass", "", {"requests": 9, **FIGURES})
        outbox.write(rollout, "stop", revision=f"{number - 1}.abc", cut=number % 2)
    return rollout


def size_of(outbox: Outbox) -> int:
    return len(outbox._records.read(LEDGER).content)


def test_with_mlflow_away_for_hundreds_of_promotions_none_is_refused_for_want_of_room(
    small: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    rollouts = [promote(small, number) for number in range(1, 301)]
    assert size_of(small) < CONFIG_MAP // 2
    assert "lack the steps of" in caplog.text
    assert "and 0 others altogether" in caplog.text

    # What the ledger says of each in its summary is whole, for the oldest as for the newest.
    told = small.unmirrored()
    for number, rollout in enumerate(rollouts, start=1):
        record = record_of(entry for entry in told if entry.rollout == rollout)
        assert (record.version, record.outcome, record.requests) == (str(number), "serving", 9)
        assert (record.cut, record.evidence) == (number % 2, FIGURES)
    newest = [entry.event for entry in told if entry.rollout == rollouts[-1]]
    assert newest == ["begin", "waiting", "shift", "shift", "end", "stop"]


def test_where_begin_and_end_do_not_fit_either_the_oldest_rollouts_go_whole(
    small: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SharedRecords, "OUTBOX_BYTES", 32 * 1024)
    going_on = promote(small, 1, end=False)
    rollouts = [promote(small, number) for number in range(2, 102)]
    assert size_of(small) < 34 * 1024
    assert "others altogether" in caplog.text
    events: dict[str, set[str]] = {}
    for entry in small.entries():
        events.setdefault(entry.rollout, set()).add(entry.event)
    kept = [rollout for rollout in rollouts if rollout in events]
    assert kept == rollouts[-len(kept) :]
    assert len(kept) > 15
    assert all(events[rollout] >= {"begin", "end"} for rollout in kept)
    # Whoever resolves it must see how far it came.
    assert small.unended() == [going_on]
    assert events[going_on] >= {"begin", "shift"}


def test_what_mlflow_has_goes_first_and_without_a_word(
    small: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SharedRecords, "OUTBOX_BYTES", 16 * 1024)
    for number in range(1, 21):
        told = promote(small, number)
        untold = {entry.rollout for entry in small.unmirrored()}
        assert told in untold
        small.mirrored(len(small.unmirrored()), keep=True)
    assert size_of(small) < 18 * 1024
    assert caplog.text == ""


def test_where_all_is_needed_mlflow_is_told_nothing_again(
    small: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedRecords, "OUTBOX_BYTES", 1024)
    for share in range(20):
        small.write("going-on", "begin" if share == 0 else "shift", share=share, shown="x" * 99)
        assert len(small.unmirrored()) == 1
        small.mirrored(1, keep=True)


def test_lines_after_the_outbox_was_shortened_take_numbers_that_are_free(
    small: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedRecords, "OUTBOX_BYTES", 8 * 1024)
    first = promote(small, 1)
    for number in range(2, 6):
        promote(small, number)
    assert first in {entry.rollout for entry in small.entries()}
    small.write(first, "stop", revision="late", cut=3)
    lines = [entry for entry in small.entries() if entry.rollout == first]
    assert len({line.n for line in lines}) == len(lines)
    assert record_of(lines).cut == 4


def test_a_home_has_room_for_all(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 4):
        promote(outbox, number)
    assert HomeRecords.OUTBOX_BYTES is None
    assert caplog.text == ""
