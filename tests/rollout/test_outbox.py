"""The ledger's first copy: no line is lost or swallowed, whatever happens while it is written or
mirrored.
"""

from pathlib import Path

import pytest

from weighbridge.core.errors import Unavailable
from weighbridge.rollout.outbox import Outbox
from weighbridge.serving.targets.home_records import HomeRecords


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
