"""The unit that brings the platform up at boot: systemd takes it, and it keeps what was set."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from weighbridge.cli.main import cli
from weighbridge.core.settings import Settings
from weighbridge.services import systemd


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the unit is written, instead of where systemd would find it."""
    folder = tmp_path / "units"
    monkeypatch.setattr(systemd, "unit_folder", lambda is_root: folder)
    return folder


def test_up_install_writes_a_unit_that_watches_supervisord_and_starts_nothing(
    units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(cli, ["up", "--install"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "enable --now weighbridge" in done.output
    home = Settings().home
    lines = (units / "weighbridge.service").read_text().splitlines()
    assert f"PIDFile={home}/run/supervisord.pid" in lines
    assert {"Type=forking", "Restart=on-failure", "StartLimitIntervalSec=0"} <= set(lines)
    [start] = [line for line in lines if line.startswith("ExecStart=")]
    assert start.endswith("-m weighbridge.cli.main up")
    assert not (home / "run").exists()


def test_settings_and_credentials_are_kept_for_their_owner_alone(
    units: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = 'postgresql://u:p"a$s`s\\w@h/d'
    monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", secret)
    monkeypatch.setenv("SOMETHING_ELSE", "of the user's")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    path, _ = systemd.install(Settings())
    environment = Settings().home / "secrets" / "environment"
    assert environment.stat().st_mode & 0o777 == 0o600
    assert "SOMETHING_ELSE" not in environment.read_text()
    assert "u:p" not in path.read_text()
    # Its quoting is that of a shell.
    shell = f'. {environment}; printf %s "$WEIGHBRIDGE_DATABASE_URL"'
    assert subprocess.check_output(["sh", "-c", shell], text=True) == secret


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit_with_any_home(tmp_path: Path) -> None:
    home = tmp_path / "a home with 100% of $everything"
    text = systemd.unit(home, home / "secrets" / "environment", "default")
    (path := tmp_path / "weighbridge.service").write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")
