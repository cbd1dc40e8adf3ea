"""The command line: help, exit codes, one line for every error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from weighbridge.cli.doctor import doctor
from weighbridge.cli.main import LazyGroup, main
from weighbridge.cli.references import model_and_version
from weighbridge.core.errors import BadInput, GateFailed, Unavailable, WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.registry import Registry

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


@dataclass(frozen=True)
class Ended:
    """What a command wrote, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The same in this process: a new one takes half a second of imports."""

    def run(*words: str) -> Ended:
        code = 0
        try:
            main(list(words))
        except SystemExit as exc:
            code = int(str(exc.code or 0))
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def test_help_names_every_command() -> None:
    shown = weighbridge("--help").stdout
    assert all(name in shown for name in LazyGroup.table)


@pytest.mark.parametrize("name", LazyGroup.table)
def test_every_command_describes_itself(name: str, command: Callable[..., Ended]) -> None:
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")


def test_misspelt_command_names_the_nearest_and_exits_2(command: Callable[..., Ended]) -> None:
    done = command("pln", "x.yaml")
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, click.exceptions.Abort])
def test_after_an_interruption_it_says_that_the_run_goes_on_next_time(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("weighbridge.cli.main.cli.main", fail)
    with pytest.raises(SystemExit) as exit_:
        main(["--verbose", "run", "x.yaml"])
    assert exit_.value.code == 130
    assert "the same command goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("demo@12",), ("demo", "12")])
def test_a_version_is_named_either_way(words: tuple[str, ...]) -> None:
    assert model_and_version(words[0], words[1] if words[1:] else None) == ("demo", "12")


def test_a_version_is_neither_guessed_nor_named_twice() -> None:
    assert model_and_version("demo", None, default="champion") == ("demo", "champion")
    for name, version in (("demo", None), ("demo@1", "2")):
        with pytest.raises(click.UsageError):
            model_and_version(name, version)


def test_doctor_says_of_what_is_missing_that_it_is_and_fits_a_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = CliRunner().invoke(doctor, []).output.splitlines()
    assert len(lines) < 24
    (compiler,) = [line for line in lines if "C++ compiler" in line]
    assert compiler.startswith("missing")
    assert "apt-get install g++" in compiler
    (engines,) = [line for line in lines if "llama_cpp/cpu" in line]
    assert engines.startswith("missing")
    every_one = json.loads(CliRunner().invoke(doctor, ["--json"]).output)
    assert "engine llama_cpp, cpu" in [finding["what"] for finding in every_one]


def test_doctor_reads_the_store_where_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(Settings().home / "store")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "weights").write_text("weights")
    artifact = store.add(tmp_path / "files", "gguf")

    def told(*options: str) -> dict[str, Any]:
        found = json.loads(CliRunner().invoke(doctor, ["--json", *options]).output)
        return {finding["what"]: finding for finding in found}

    assert "store" not in told()
    assert told("--store")["store"]["state"] == "1 files, all whole"
    status = (artifact.path / "weights").stat()
    (artifact.path / "weights").chmod(0o644)
    (artifact.path / "weights").write_text("WEIGHTS")
    os.utime(artifact.path / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))
    damaged = told("--store")["store"]
    assert not damaged["ok"]
    assert damaged["state"] == f"1 of 1 files damaged, of {artifact.short}"


def test_init_writes_a_recipe_that_loads_and_never_overwrites(tmp_path: Path) -> None:
    from weighbridge.configs.load import load

    assert weighbridge("init", "mine.yaml", cwd=tmp_path).returncode == 0
    assert load(tmp_path / "mine.yaml").name
    again = weighbridge("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_status_of_a_fresh_installation_says_what_to_do(command: Callable[..., Ended]) -> None:
    done = command("status")
    assert done.returncode == 0
    assert "weighbridge run RECIPE" in done.stdout


def test_asking_an_unknown_target_exits_2(command: Callable[..., Ended]) -> None:
    done = command("ask", "nowhere", "hello")
    assert done.returncode == 2
    assert "there is none of that name" in done.stderr


def test_a_second_home_on_one_sqlite_is_told_so_before_anything_is_done(
    command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = Registry.connect(Settings(home=tmp_path / "theirs"))
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "ours"))
    monkeypatch.setenv("WEIGHBRIDGE_TRACKING_URI", theirs.connection.uri)
    with theirs.joined("deploying"):
        for words in (["plan", str(ROOT / "configs" / "no-finetune.yaml")], ["up"]):
            ended = command(*words)
            assert (ended.returncode, ended.stdout) == (2, "")
            assert "SQLite does not keep two homes apart; set WEIGHBRIDGE_DATAB" in ended.stderr
            assert len(ended.stderr.strip().splitlines()) == 1
        found = json.loads(CliRunner().invoke(doctor, ["--json"]).output)
        (finding,) = [finding for finding in found if finding["what"] == "MLflow"]
        assert not finding["ok"]
        assert finding["remedy"].startswith("set WEIGHBRIDGE_DATABASE_URL=postgresql://")


def test_a_run_ends_with_the_page_that_people_see(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from weighbridge.cli.run import _where_to_look

    settings = Settings(home=tmp_path, tracking_uri="http://mlflow:5000")
    api = "http://prefect:4200/api"
    _where_to_look(settings, "demo", api)
    monkeypatch.setenv("PREFECT_UI_URL", "http://127.0.0.1:4200")
    _where_to_look(settings, "demo", api)
    shown = capsys.readouterr().out
    assert "runs and report:      http://prefect:4200\n" in shown
    assert shown.endswith("runs and report:      http://127.0.0.1:4200\n")
