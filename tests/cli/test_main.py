"""The command line: help, exit codes, one line for every error."""

import subprocess
import sys
from pathlib import Path

import pytest

from weighbridge.cli.main import LazyGroup, main
from weighbridge.core.errors import BadInput, GateFailed, Unavailable, WeighbridgeError

ROOT = Path(__file__).resolve().parent.parent.parent


def weighbridge(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        "from weighbridge.cli.main import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(ROOT), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command() -> None:
    shown = weighbridge("--help").stdout
    assert all(name in shown for name in LazyGroup.table)


@pytest.mark.parametrize("name", LazyGroup.table)
def test_every_command_describes_itself(name: str) -> None:
    done = weighbridge(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")


def test_misspelt_command_names_the_nearest_and_exits_2() -> None:
    done = weighbridge("pln", "x.yaml")
    assert done.returncode == 2
    assert "did you mean 'plan'?" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(WeighbridgeError, 1), (BadInput, 2), (GateFailed, 3), (Unavailable, 4)]
)
def test_errors_are_one_line_with_their_exit_code(
    error: type[WeighbridgeError],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("doing this", "that is wrong", "do so")

    monkeypatch.setattr("weighbridge.cli.main.cli.main", fail)
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == code
    assert capsys.readouterr().err == "error: doing this: that is wrong; do so\n"


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(28, "No space left on device"), 1 << 40),
        (RuntimeError("500 Internal Server Error"), 0),
    ],
)
def test_a_full_disk_is_called_so_wherever_it_shows(
    error: Exception, free: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("weighbridge.cli.main.cli.main", fail)
    monkeypatch.setattr("weighbridge.core.disk.free_bytes", lambda folder: free)
    with pytest.raises(SystemExit) as exit_:
        main(["run", "x.yaml"])
    assert exit_.value.code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: writing: the disk is full; make room")


def test_init_writes_a_recipe_that_loads_and_never_overwrites(tmp_path: Path) -> None:
    from weighbridge.configs.load import load

    assert weighbridge("init", "mine.yaml", cwd=tmp_path).returncode == 0
    assert load(tmp_path / "mine.yaml").name
    again = weighbridge("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_status_of_a_fresh_installation_says_what_to_do() -> None:
    done = weighbridge("status")
    assert done.returncode == 0
    assert "weighbridge run RECIPE" in done.stdout


def test_asking_an_unknown_target_exits_2() -> None:
    done = weighbridge("ask", "nowhere", "hello")
    assert done.returncode == 2
    assert "there is none of that name" in done.stderr
