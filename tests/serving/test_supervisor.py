"""Our supervisord: it keeps programs alive, outlives who started it, and leaves nothing behind."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import until
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import free_port, is_taken
from weighbridge.serving.reaper import kill_marked, marked
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "home")
    yield supervisor
    supervisor.shutdown()


def program(supervisor: Supervisor, name: str = "sleep", command: list[str] = SLEEP) -> Program:
    return Program(
        name, command, supervisor.logs / f"{name}.log", supervisor.logs, {"WORDS": "100% 'so'"}, 5
    )


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pid_of(supervisor: Supervisor, name: str = "sleep") -> int:
    until(lambda: (state := supervisor.state(name)) and state.up and state.pid)
    state = supervisor.state(name)
    assert state
    return state.pid


def test_starts_on_demand_and_once(supervisor: Supervisor) -> None:
    assert not supervisor.running()
    supervisor.ensure()
    first = (supervisor.folder / "supervisord.pid").read_text()
    supervisor.ensure()
    assert supervisor.running()
    assert (supervisor.folder / "supervisord.pid").read_text() == first


def test_one_that_has_ended_is_not_waited_for_until_its_parent_asks_for_it(
    supervisor: Supervisor,
) -> None:
    with subprocess.Popen(["true"]) as child:
        process = psutil.Process(child.pid)
        until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        began = time.monotonic()
        supervisor._await_end(process)
        assert time.monotonic() - began < 10


def test_a_killed_program_comes_back(supervisor: Supervisor) -> None:
    supervisor.ensure()
    supervisor.add(program(supervisor))
    pid = pid_of(supervisor)
    log = supervisor.logs / "sleep.log"
    until(lambda: log.exists() and "up" in log.read_text())
    time.sleep(1.1)  # supervisord takes less for a start that failed, and pauses
    os.kill(pid, signal.SIGKILL)
    until(lambda: (state := supervisor.state("sleep")) and state.up and state.pid != pid)


def test_removed_it_has_ended_and_is_forgotten(supervisor: Supervisor) -> None:
    supervisor.ensure()
    supervisor.add(program(supervisor))
    pid = pid_of(supervisor)
    supervisor.remove("sleep")
    assert not alive(pid)
    assert supervisor.state("sleep") is None
    assert supervisor.names() == []


def test_adding_the_same_program_again_leaves_it_alone(supervisor: Supervisor) -> None:
    supervisor.ensure()
    supervisor.add(program(supervisor))
    pid = pid_of(supervisor)
    supervisor.add(program(supervisor))
    assert pid_of(supervisor) == pid


def test_programs_come_up_again_with_a_new_supervisord_and_not_twice(
    supervisor: Supervisor,
) -> None:
    supervisor.ensure()
    supervisor.add(program(supervisor))
    pid = pid_of(supervisor)
    os.kill(int((supervisor.folder / "supervisord.pid").read_text()), signal.SIGKILL)
    until(lambda: not alive(pid))
    supervisor.ensure()
    assert pid_of(supervisor) != pid


def test_shutdown_leaves_no_process(supervisor: Supervisor) -> None:
    supervisor.ensure()
    supervisor.add(program(supervisor))
    pids = [pid_of(supervisor), int((supervisor.folder / "supervisord.pid").read_text())]
    supervisor.shutdown()
    assert not any(alive(pid) for pid in pids)


def test_values_reach_the_program_as_they_are(supervisor: Supervisor) -> None:
    supervisor.ensure()
    supervisor.add(
        program(supervisor, command=[sys.executable, "-c", "import os; print(os.environ['WORDS'])"])
    )
    log = supervisor.logs / "sleep.log"
    until(lambda: log.exists() and "100% 'so'" in log.read_text())


def test_a_home_too_deep_for_a_socket_works(tmp_path: Path) -> None:
    deep = Supervisor(tmp_path / ("d" * 60) / ("e" * 60))
    try:
        deep.ensure()
        assert deep.running()
        assert deep.socket.parent.stat().st_mode & 0o077 == 0
    finally:
        deep.shutdown()


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    broken = Supervisor(tmp_path)
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "supervisord.pid").mkdir()
    (tmp_path / "run" / "logs" / "supervisord.log").mkdir()
    with pytest.raises(Unavailable, match="starting supervisord"):
        broken.ensure()


def test_a_command_under_the_reaper_waits_for_its_port(supervisor: Supervisor) -> None:
    from weighbridge.core.processes import Process

    reaper = Path(__file__).parents[2] / "serving" / "reaper.py"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-I",
            str(reaper),
            "--await-port",
            "127.0.0.1",
            str(port),
            "--",
            *SLEEP,
        ]
        log = supervisor.folder / "reaper.log"
        with Process("reaper", command, log=log, cwd=supervisor.folder.parent.parent) as process:
            time.sleep(0.5)
            assert process.tail() == ""
            taken.close()
            until(lambda: process.tail() == "up")
    assert port != free_port()


def test_secrets_reach_a_program_and_no_command_line(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.ensure()
    secrets, out = tmp_path / "secrets.json", tmp_path / "out"
    secrets.write_text(json.dumps({"WORD": "s3cret '%' x"}))
    code = (
        "import os, pathlib, time; "
        f"pathlib.Path({str(out)!r}).write_text(os.environ['WORD']); time.sleep(600)"
    )
    secret = dataclasses.replace(
        program(supervisor, command=[sys.executable, "-c", code]), secrets=secrets
    )
    supervisor.add(secret)
    until(lambda: out.exists() and out.read_text() == "s3cret '%' x")
    assert "s3cret" not in secret.ini()
    assert "s3cret" not in " ".join(psutil.Process(pid_of(supervisor)).cmdline())


def test_children_of_a_killed_program_do_not_keep_its_port_from_it(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.ensure()
    port, pids = free_port(), tmp_path / "pids"
    child = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    code = (
        "import subprocess, sys, pathlib; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"pathlib.Path({str(pids)!r}).open('a').write(f'{{child.pid}} '); "
        "child.wait()"
    )
    command = [sys.executable, "-c", code]
    supervisor.add(
        dataclasses.replace(
            program(supervisor, command=command), mark=f"{tmp_path}:sleep", kill_leftovers=True
        )
    )
    until(lambda: is_taken(port))
    first = int(pids.read_text())
    os.kill(pid_of(supervisor), signal.SIGKILL)
    until(lambda: len(pids.read_text().split()) == 2)
    assert not alive(first)
    until(lambda: is_taken(port))
    assert set(marked(f"{tmp_path}:")) == {pid_of(supervisor), int(pids.read_text().split()[1])}
    kill_marked(f"{tmp_path}:")


def test_what_is_forgotten_does_not_come_back(supervisor: Supervisor) -> None:
    supervisor.ensure()
    supervisor.add(program(supervisor, "kept"))
    supervisor.add(program(supervisor, "gone"))
    supervisor.shutdown(forget=["gone"])
    supervisor.ensure()
    assert [state.name for state in supervisor.states()] == ["kept"]
