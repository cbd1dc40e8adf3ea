"""`weighbridge show`: what a kept measurement tells, of this release and of earlier ones."""

import json

from tests.tasks.made import measured
from tests.tasks.test_report_quality import candidate
from weighbridge.cli.models import _figures


def test_faults_and_slices_are_shown_with_their_split() -> None:
    shown = dict(_figures(json.loads(candidate("a").model_dump_json())))
    assert shown["empty answers"] == "0.010 (0.003–0.036)"
    assert shown["empty answers, test split"] == "0.010 (0.003–0.036)"
    assert shown["exact match of loans"] == "0.333 (0.263–0.412)"


def test_a_measurement_of_an_earlier_release_is_shown() -> None:
    document = json.loads(measured("a").model_dump_json(exclude={"faults", "slices", "uncounted"}))
    assert not any("answers" in name for name, _ in _figures(document))
