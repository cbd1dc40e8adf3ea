"""Numbers and texts as people read them."""

import math

import pytest

from weighbridge.core.formatting import between_seconds, figure, one_line


def test_what_a_library_says_in_lines_and_columns_becomes_one_line() -> None:
    assert one_line(ValueError("bad\n  value:\tx ")) == "bad value: x"
    assert one_line("a\r\n\n b") == "a b"


def test_an_error_without_words_is_told_by_its_type() -> None:
    assert one_line(MemoryError()) == "MemoryError"
    assert one_line("") == ""


def test_a_cut_can_be_seen() -> None:
    assert one_line("abc def", 5) == "abc d…"
    assert one_line("abc  def", 7) == "abc def"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"),
        (-0.0, "0"),
        (59.04, "59"),
        (80.26, "80.3"),
        (999.6, "1,000"),
        (1234.5, "1,234"),
        (12_345_678.0, "12,345,678"),
        (0.05, "0.05"),
        (-0.0000798, "-0.0000798"),
        (2.2e-16, "2.2e-16"),
        (math.inf, "inf"),
    ],
)
def test_a_figure_has_the_digits_that_say_something_and_no_exponent(
    value: float, told: str
) -> None:
    assert figure(value) == told


def test_figures_that_stand_beside_each_other_keep_their_zeros() -> None:
    told = [figure(value, zeros=True) for value in (59, 80.26, 121, 0.3, 0)]
    assert told == ["59.0", "80.3", "121", "0.300", "0.00"]
    assert figure(0.9876543, 4) == "0.9877"


def test_both_ends_in_one_unit_have_it_once() -> None:
    assert between_seconds(0.028, 0.04) == "28–40 ms"
    assert between_seconds(0.0028, 0.04) == "2.8–40 ms"
    assert between_seconds(0.9, 1.2) == "900 ms–1.2 s"
    assert between_seconds(1.0, 12.0) == "1.0–12.0 s"
