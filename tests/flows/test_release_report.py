"""How a release is repeated: commands that a new shell understands."""

from pathlib import Path

import pytest

from weighbridge.core.settings import Settings
from weighbridge.flows.release_report import how_to_repeat, own_command
from weighbridge.registry import Version


def version() -> Version:
    return Version(
        name="demo",
        version="6",
        role="variant",
        digest="sha256:0",
        format="gguf",
        size=1,
        model_id="",
        run_id="r",
        parent="",
        base="",
        aliases=(),
        tags={},
        created=0.0,
    )


def test_a_home_of_its_own_is_named_and_quoted(tmp_path: Path) -> None:
    command = own_command(Settings(home=tmp_path / "my home"))
    assert command.startswith(f"WEIGHBRIDGE_HOME='{tmp_path}/my home' /")


def test_the_usual_home_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHBRIDGE_HOME", raising=False)
    monkeypatch.delenv("WEIGHBRIDGE_TRACKING_URI", raising=False)
    assert own_command(Settings()).startswith("/")


def test_no_login_is_written_into_a_report(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, tracking_uri="https://me:secret@mlflow.example")
    assert "WEIGHBRIDGE_TRACKING_URI=https://mlflow.example " in own_command(settings)


def test_the_version_that_is_released_is_repeated_and_read(tmp_path: Path) -> None:
    facts = how_to_repeat(version(), "a1b2", Settings(home=tmp_path))
    assert facts["make and measure it again"].endswith(" run --replay demo@6")
    assert facts["read this in a terminal"].endswith(" show demo@6")
    assert "a1b2" in facts.values()
    assert list(how_to_repeat(None, "a1b2", Settings(home=tmp_path)).values()) == ["a1b2"]
