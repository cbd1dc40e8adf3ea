"""Files that are replaced whole or not at all."""

from pathlib import Path

import pytest

from weighbridge.core.files import replace_text, replacing


def test_a_file_is_replaced_and_only_its_owner_may_read_it_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys"
    replace_text(path, "old")
    replace_text(path, "größer", mode=0o600)
    assert path.read_text(encoding="utf-8") == "größer"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_text(path, "before")
    with pytest.raises(RuntimeError):
        _break_off(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def _break_off(path: Path) -> None:
    with replacing(path) as stream:
        stream.write(b"half of")
        raise RuntimeError
