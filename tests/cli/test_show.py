"""show: what is known of a version, with the report that released it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.tasks.test_report_page import WHOLE, missing
from weighbridge.cli.models import show
from weighbridge.core.errors import Unavailable
from weighbridge.registry import Registry, Version, VersionDetails
from weighbridge.rollout.champion import RELEASE_RUN
from weighbridge.tasks.report_page import Page


class Kept:
    """MLflow with one version, released by a run that may have kept its report."""

    def __init__(self, report: Page | None, tags: Mapping[str, str]) -> None:
        self.report = report
        self.version = Version(
            name="demo",
            version="6",
            role="variant",
            digest="sha256:" + "ab" * 32,
            format="gguf",
            size=1 << 20,
            model_id="m",
            run_id="",
            parent="",
            base="",
            aliases=("challenger",),
            tags=tags,
            created=0.0,
        )

    def show(self, name: str, which: str) -> VersionDetails:
        assert (name, which) in (("demo", "challenger"), ("demo", "6"), ("demo", "champion"))
        return VersionDetails(self.version, [self.version], [], {})

    def text_of_run(self, run_id: str, name: str) -> str:
        assert (run_id, name) == ("run7", "report/report.json")
        if self.report is None:
            raise Unavailable("reading it", "there is none")
        return self.report.model_dump_json()


PAGE = Page(name="demo", headline="winner: llama_cpp/a", why="It is fast.", decided=True)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))

    def run(report: Page | None, *words: str, tags: Mapping[str, str] | None = None) -> str:
        kept = Kept(report, {RELEASE_RUN: "run7"} if tags is None else tags)
        monkeypatch.setattr(Registry, "connect", lambda settings: kept)
        result = CliRunner().invoke(show, words, catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    return run


@pytest.mark.parametrize("which", ["demo@challenger", "demo@6", "demo"])
def test_a_version_is_shown_with_the_report_that_released_it(
    which: str, shown: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(PAGE, which)
    assert "demo 6" in text
    assert text.rstrip().endswith("winner: llama_cpp/a\nIt is fast.")


def test_every_part_of_the_report_is_shown(shown: Any) -> None:
    assert not missing(shown(WHOLE, "demo@challenger"))


def test_programs_get_the_report_as_data(shown: Any) -> None:
    document = json.loads(shown(PAGE, "demo@6", "--json"))
    assert document["version"] == "6"
    assert Page.model_validate(document["report"]) == PAGE


@pytest.mark.parametrize("tags", [{RELEASE_RUN: "run7"}, {}])
def test_a_version_without_one_is_shown_all_the_same(tags: dict[str, str], shown: Any) -> None:
    text = shown(None, "demo@6", tags=tags)
    assert "demo 6" in text
    assert ("report/report.html of the run run7" in " ".join(text.split())) == bool(tags)
    assert json.loads(shown(None, "demo@6", "--json", tags=tags))["report"] is None
