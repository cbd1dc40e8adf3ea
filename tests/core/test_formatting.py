"""Numbers and texts as people read them."""

from weighbridge.core.formatting import one_line


def test_what_a_library_says_in_lines_and_columns_becomes_one_line() -> None:
    assert one_line(ValueError("bad\n  value:\tx ")) == "bad value: x"
    assert one_line("a\r\n\n b") == "a b"


def test_an_error_without_words_is_told_by_its_type() -> None:
    assert one_line(MemoryError()) == "MemoryError"
    assert one_line("") == ""


def test_a_cut_can_be_seen() -> None:
    assert one_line("abc def", 5) == "abc d…"
    assert one_line("abc  def", 7) == "abc def"
