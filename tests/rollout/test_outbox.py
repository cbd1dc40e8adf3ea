"""The ledger's first copy: no line is lost or swallowed, whatever happens while it is written or mirrored."""

from pathlib import Path

import pytest

from weighbridge.core.errors import Unavailable
from weighbridge.rollout.outbox import Book


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "shop")


def _file(tmp_path: Path) -> Path:
    return tmp_path / "shop" / "ledger.jsonl"


def test_lines_are_numbered_within_their_rollout(book: Book) -> None:
    for rollout in ("a", "b", "a"):
        book.write(rollout, "shift", share=10)
    assert [(line.rollout, line.n) for line in book.entries()] == [("a", 0), ("b", 0), ("a", 1)]


def test_a_line_that_a_crash_cut_off_is_not_there_and_swallows_no_other(book: Book, tmp_path: Path) -> None:
    book.write("a", "begin", why="übel")
    whole = _file(tmp_path).read_bytes()
    for cut in range(1, len(whole)):
        _file(tmp_path).write_bytes(whole + whole[:cut])
        book.write("b", "begin")
        # Without its end of line alone, a line is whole.
        assert [line.rollout for line in book.entries()] == (["a", "b"] if cut < len(whole) - 1 else ["a", "a", "b"])


def test_words_with_line_breaks_of_any_kind_come_back(book: Book) -> None:
    words = "a\nb\r\nc\u2028d\x85e\x0cf"
    book.write("a", "back", why=words)
    assert [line.fields["why"] for line in book.entries()] == [words]


def test_what_was_mirrored_is_not_told_again(book: Book) -> None:
    book.write("a", "begin")
    book.mirrored(1)
    book.write("a", "end")
    assert [line.event for line in book.unmirrored()] == ["end"]


def test_the_file_starts_anew_when_all_of_it_is_mirrored_and_every_rollout_has_ended(
    book: Book, tmp_path: Path
) -> None:
    book.write("a", "begin")
    book.mirrored(1)
    assert _file(tmp_path).exists()
    book.write("a", "end")
    book.mirrored(1, keep=True)
    assert _file(tmp_path).exists()
    book.mirrored(0)
    assert not _file(tmp_path).exists()
    book.write("b", "begin")
    assert [line.rollout for line in book.unmirrored()] == ["b"]


def test_lines_written_while_mlflow_was_told_others_are_told_next(book: Book) -> None:
    book.write("a", "begin")
    told = len(book.unmirrored())
    book.write("a", "end")
    book.mirrored(told)
    assert [line.event for line in book.unmirrored()] == ["end"]


def test_a_crash_while_the_file_starts_anew_loses_no_later_line(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.write("a", "begin")
    book.mirrored(1)
    book.write("a", "end")
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
            book.mirrored(1)
    book.write("b", "begin")
    assert "b" in {line.rollout for line in book.unmirrored()}


def test_a_rollout_without_an_end_is_known(book: Book) -> None:
    for rollout in ("a", "b"):
        book.write(rollout, "begin")
    book.write("a", "end")
    assert (book.ended("a"), book.ended("b"), book.unended()) == (True, False, ["b"])
