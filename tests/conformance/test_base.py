"""What checks say of what they found."""

import pytest

from weighbridge.conformance.base import CheckFailed, equal


def test_a_difference_is_said_in_the_words_of_the_api() -> None:
    with pytest.raises(CheckFailed, match='reason to end: null instead of "length"'):
        equal(None, "length", "reason to end")
    with pytest.raises(CheckFailed, match=r'the answer: \["Grüß", true\] instead of \["Gruss", f'):
        equal(("Grüß", True), ("Gruss", False), "the answer")
