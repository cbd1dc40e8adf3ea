"""Which version of Weighbridge is newer, and what is said of what it wrote."""

import pytest

from weighbridge.core import versions
from weighbridge.core.errors import Unavailable


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        ("0.9.0", False),
        ("0.10.0", False),
        ("0.10.1", True),
        ("1.0", True),
        ("0.9.99", False),
        ("", False),
        ("9c1f0a", False),
        ("12345678", False),
    ],
)
def test_what_is_newer_is_told_by_numbers_and_what_is_no_version_is_not(
    monkeypatch: pytest.MonkeyPatch, version: str, newer: bool
) -> None:
    monkeypatch.setattr(versions, "own_version", lambda: "0.10.0")
    assert versions.is_newer(version) is newer


def test_a_form_that_is_known_is_read_whoever_wrote_it() -> None:
    versions.refuse_newer("reading it", form=1, known=1, written_by="99.0")
    with pytest.raises(Unavailable, match=r"^reading it: Weighbridge 99.0 wrote it, .*>=99.0 here"):
        versions.refuse_newer("reading it", form=2, known=1, written_by="99.0")
