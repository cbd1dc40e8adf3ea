"""What data is asked for by."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.tasks.prepared_data import args


@pytest.mark.parametrize(
    "fields",
    [
        {"train": "train.xml"},
        {"columns": {"prompt": "{a", "completion": "{b}"}},
        {"columns": {"prompt": "{}", "completion": "{b}"}},
        {"columns": {"prompt": "{a!r}", "completion": "{b}"}},
        {"source": "ftp://x"},
        {"source": 3},
        {"unknown": 1},
    ],
)
def test_arguments_that_cannot_be_right_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        args(**fields)
