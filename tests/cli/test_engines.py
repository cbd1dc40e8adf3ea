"""The engines commands: what they print, what they keep, and their exit codes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins import engine
from weighbridge.cli.main import main
from weighbridge.conformance import matrix
from weighbridge.conformance.base import CheckResult
from weighbridge.conformance.report import ConformanceReport, kept
from weighbridge.core import plugins
from weighbridge.core.settings import Settings
from weighbridge.serving.engines.base import engine_class


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = 0
    try:
        main(["engines", *words])
    except SystemExit as exc:
        code = int(str(exc.code or 0))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def report(verdict: str = "passed", **changes: Any) -> ConformanceReport:
    outcome = {
        "check": "chat",
        "title": "chat",
        "verdict": verdict,
        "why": "so it was | seen",
        "seconds": 0.1,
    }
    fields: dict[str, Any] = {
        "engine": "stand_in",
        "device": "cpu",
        "options": {},
        "versions": {"made": "1.2"},
        "machine": {"cores": "2"},
        "date": "2026-11-26",
        "seconds": 3.0,
        "outcomes": [outcome],
    }
    return ConformanceReport(**(fields | changes))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In place of the suite, which is tested elsewhere: keeps a report in which `fails` fails;
    returns all calls.
    """
    calls: list[dict[str, Any]] = []

    def check(name: str, workspace: Any, **options: Any) -> ConformanceReport:
        calls.append({"name": name, **options})
        made = report("failed" if options["options"].get("default") == "fails" else "passed")
        options["tell"](CheckResult(**made.outcomes[0]))
        made.keep(workspace.settings.home)
        return made

    monkeypatch.setattr("weighbridge.conformance.runner.check", check)
    return calls


def test_engines_are_listed_with_device_formats_environment_and_last_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report().keep(Settings().home)
    code, out, _ = run(capsys, "--json")
    rows = {(row["engine"], row["device"]): row for row in json.loads(out)}
    assert code == 0
    serving = {name for name in plugins.names("engine") if engine_class(name).locks}
    assert {name for name, _ in rows} == serving
    row = rows["stand_in", "cpu"]
    assert row["formats"] == ["gguf"]
    assert row["checked"] == "1 passed (made 1.2, 2026-11-26)"
    assert (row["environment"] == "installed") == (row["bytes"] > 0)
    assert rows["llama_cpp", "cpu"]["checked"] is None
    # Sizes again would be two hundred thousand files.
    monkeypatch.setattr("weighbridge.core.pruning.size_on_disk", lambda folder: 1)
    assert "1 passed (made" in run(capsys)[1]


def test_a_check_is_told_line_by_line_and_kept(
    capsys: pytest.CaptureFixture[str], checked: list[dict[str, Any]]
) -> None:
    code, out, _ = run(capsys, "check", "stand_in", "--set", "threads=2", "--only", "chat")
    assert code == 0
    assert re.search(r"passed +chat: so it was \| seen", out)
    assert "1 passed, made 1.2" in out
    assert checked[0]["options"] == {"threads": "2"}
    assert list(checked[0]["only"]) == ["chat"]
    assert kept(Settings().home, "stand_in", "cpu") == report()


def test_a_failed_check_exits_3_after_everything_was_checked_and_printed(
    capsys: pytest.CaptureFixture[str], checked: list[dict[str, Any]]
) -> None:
    code, out, err = run(
        capsys, "check", "stand_in", "llama_cpp", "--set", "default=fails", "--json"
    )
    assert code == 3
    assert [one["name"] for one in checked] == ["stand_in", "llama_cpp"]
    assert [one["outcomes"][0]["verdict"] for one in json.loads(out)] == ["failed", "failed"]
    assert "checking engines: failed are stand_in: chat" in err


def test_an_engine_that_cannot_be_run_here_exits_4_and_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "check", "tgi", "--set", "program=no-such-launcher")
    assert code == 4
    assert "28 not run" in out
    assert "nothing of tgi could be run: starting tgi: there is no no-such-launcher" in err
    assert kept(Settings().home, "tgi", "cuda") is None


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["check", "llama_cp"], "did you mean 'llama_cpp'?"),
        (["install", "stand-in"], "did you mean 'stand_in'?"),
        (["install", "stand_in", "--device", "cuda"], "it has no environment for cuda; known: cpu"),
        (["install", "stand_in", "--native"], "it has no native build"),
        (["check", "stand_in", "--set", "thread=2"], "did you mean 'threads'?"),
        (["check", "stand_in", "--only", "chats"], "did you mean 'chat'?"),
        (["check", "stand_in", "--set", "threads"], "give OPTION=VALUE"),
        (["check"], "name an engine, or give --all"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_with_exit_code_2(
    words: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2
    assert advice in err.splitlines()[-1]


def test_several_environments_are_installed_with_one_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "install", "stand_in", "llama_cpp", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["engine"] for row in rows] == ["stand_in", "llama_cpp"]
    assert all((Path(row["path"]) / ".complete").exists() for row in rows)


def test_prune_says_what_it_freed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "cache"))
    assert "every environment is needed" in run(capsys, "prune")[1]
    old = tmp_path / "cache" / "environments" / "vllm-of-last-year"
    for option, told in (("--json", '"freed": 1048576'), ("", "1.0 MiB freed")):
        old.mkdir(parents=True)
        (old / "file").write_bytes(b"x" * 2**20)
        code, out, _ = run(capsys, "prune", *option.split())
        assert (code, old.exists()) == (0, False)
        assert told in out


def test_the_document_is_written_from_what_was_recorded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report().keep(Settings().home)
    code, _, _ = run(capsys, "check", "--docs", str(tmp_path))
    assert code == 0
    entries = {
        (one["engine"], one["device"]): one
        for one in json.loads((tmp_path / "engines.json").read_text())
    }
    assert entries["stand_in", "cpu"]["report"] == report().model_dump(mode="json")
    assert entries["llama_cpp", "cpu"]["why"] == "not checked yet"
    text = (tmp_path / "engines.md").read_text()
    assert "passed here (1.2, 2026-11-26)" in text
    assert "not run: not checked yet" in text


def test_what_a_document_holds_of_other_machines_stays_until_it_is_seen_anew(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report(date="2026-11-02").keep(Settings().home)
    for name, device, date in (("stand_in", "cpu", "2026-11-01"), ("vllm", "cuda", "2026-11-01")):
        other = report(engine=name, device=device, date=date)
        entries = [
            matrix.MatrixEntry(engine=name, device=device, report=other).model_dump(mode="json")
        ]
        (tmp_path / "engines.json").write_text(json.dumps(entries))
        run(capsys, "check", "--docs", str(tmp_path))
        found = {
            (one["engine"], one["device"]): one
            for one in json.loads((tmp_path / "engines.json").read_text())
        }
        assert found["stand_in", "cpu"]["report"]["date"] == "2026-11-02"
    assert found["vllm", "cuda"]["report"]["date"] == "2026-11-01"


def test_what_was_seen_cannot_break_the_table() -> None:
    entries = [matrix.MatrixEntry(engine="e", device="cpu", report=report("failed"))]
    (row,) = [
        line
        for line in matrix.render(entries, [("chat", "chat")]).splitlines()
        if line.startswith("| chat")
    ]
    assert row == "| chat | failed: so it was \\| seen |"
