"""Checks of how an engine begins and ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from weighbridge.conformance.base import CheckFailed, Session, equal, eventually
from weighbridge.conformance.http_client import ask, streaming
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port, members
from weighbridge.serving.engine_process import HOST, serve
from weighbridge.serving.openai_client import is_ready

GRACE: Final = 10.0
"""Seconds after SIGTERM, or after its parent's death, by which nothing of an engine may be left."""
DRAINED_TOKENS: Final = 64
"""Length of the answer under way: a slow engine on a busy machine says as much within the grace."""


def start(session: Session) -> str:
    """Check that it starts and becomes ready."""
    session.stop()
    running = session.running
    return f"first token {running.load_seconds:.1f} s after its start"


def ready(session: Session) -> str:
    """Check that it answers rightly once it counts as ready: nothing else was asked before."""
    question = session.reference.question("greeting")
    equal(ask(session, question).text, question.answer, "the first answer after it was ready")
    return "the first answer is right"


def failed_start(session: Session) -> str:
    """Check that a model that cannot be loaded ends the start at once.

    The engine says why in its own words, and nothing is left running.
    """
    subject = session.subject
    session.stop()
    with tempfile.TemporaryDirectory(prefix="weighbridge-") as scratch:
        broken = Path(scratch) / "model"
        _copy_half(subject.model, broken)
        try:
            with serve(
                broken,
                subject.args,
                subject.cache,
                subject.logs / f"{subject.args.kind}-broken.log",
            ):
                raise CheckFailed("it is ready although half of its model is missing")
        except (Unavailable, BadInput) as exc:
            message = exc.wrong
        # By the command line: a start that fails gives no process to ask.
        survivors = _mentioning(str(broken))
    if survivors:
        raise CheckFailed(f"processes {survivors} are left")
    if "was not ready within" in message:
        raise CheckFailed(f"it says nothing of half a model, and hangs: {message}")
    # The last line of its log is the engine's reason.
    reason = message.partition("Its log ends:\n")[2].strip() or message
    return f"it says: {reason.splitlines()[-1][:160]}"


def sigterm(session: Session) -> str:
    """Check that SIGTERM ends it in bounded time, also with an answer under way, and leaves nothing
    behind.
    """
    seconds, _ = _ended(session)
    if seconds is None:
        raise CheckFailed(f"it was still there {GRACE:.0f} s after SIGTERM")
    return f"ended {seconds:.1f} s after SIGTERM"


def drain(session: Session) -> str:
    """Check that an answer under way when SIGTERM comes is finished first."""
    _, problem = _ended(session)
    if problem:
        raise CheckFailed(f"the answer under way was cut off: {problem}")
    return "the answer under way was finished"


def orphans(session: Session) -> str:
    """Check that SIGKILL of whoever started it leaves nothing behind."""
    session.stop()
    with _own_parent(session) as (parent, engine):
        # Listed before: afterwards they are no longer children of anybody here.
        family = [engine, *engine.children(recursive=True)]
        parent.kill()
        parent.wait()
        if not eventually(lambda: not any(map(_lives, family)), GRACE):
            survivors = [process for process in family if _lives(process)]
            for process in survivors:
                process.kill()
            raise CheckFailed(f"{len(survivors)} of {len(family)} processes outlive their parent")
    return f"{len(family)} process{'es' if len(family) > 1 else ''}, all gone"


def _ended(session: Session) -> tuple[float | None, str | None]:
    """Return what SIGTERM did, as `Session.ending` says; it is sent once for two checks."""
    if session.ending is None:
        session.ending = _end(session)
    return session.ending


def _end(session: Session) -> tuple[float | None, str | None]:
    group = session.running.process.pid
    begun = threading.Event()

    def listen() -> str | None:
        """Return why the answer was cut off; None where it was whole."""
        try:
            with streaming(
                session, session.reference.question("endless"), max_tokens=DRAINED_TOKENS
            ) as events:
                for _ in events:
                    begun.set()
        except (CheckFailed, Unavailable) as exc:
            return str(exc)
        finally:
            begun.set()
        return None

    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen)
        # SIGTERM is to find an answer under way.
        begun.wait(session.timeout)
        started = time.monotonic()
        os.kill(group, signal.SIGTERM)  # to the first of its processes: it ends the others
        ended = eventually(lambda: not any(map(_lives, members(group))), GRACE, poll=0.02)
        seconds = time.monotonic() - started
        session.stop()
        return (seconds if ended else None), listening.result()


def _copy_half(model: Path, to: Path) -> None:
    """Copy the model, with half of its largest file missing."""
    shutil.copytree(model, to)
    largest = max(
        (path for path in to.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    whole = largest.read_bytes()
    # The copy of a file of the store is read-only like the file: it cannot be written to.
    largest.unlink()
    largest.write_bytes(whole[: len(whole) // 2])


@contextmanager
def _own_parent(session: Session) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Give a parent that may be killed, and the engine that it started, ready."""
    subject, engine, port = session.subject, session.engine, free_port(HOST)
    python = ensure(engine.lock(), subject.cache).python
    with tempfile.TemporaryDirectory(prefix="weighbridge-") as folder:
        argv = engine.command(subject.model, HOST, port, python)
        log = subject.logs / f"{subject.args.kind}-orphan.log"
        description = {
            "argv": [str(argument) for argument in argv],
            "env": engine.env(),
            "log": str(log),
            "cwd": folder,
        }
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        command = [sys.executable, "-m", "weighbridge.conformance.killed_parent"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths
        ) as parent:
            try:
                assert parent.stdin is not None  # for the type checker: they were asked for above
                assert parent.stdout is not None
                json.dump(description, parent.stdin)
                parent.stdin.close()
                child = psutil.Process(int(parent.stdout.readline()))
                if not eventually(
                    lambda: is_ready(f"http://{HOST}:{port}"), subject.args.start_timeout
                ):
                    raise Unavailable(
                        "starting the engine once more", f"it was not ready; whole log: {log}"
                    )
                yield parent, child
            finally:
                parent.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        # A zombie has ended; whoever adopted it has only not asked for its status yet.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _mentioning(text: str) -> list[int]:
    """Return the ids of processes with this text on their command line."""
    ids = []
    for process in psutil.process_iter(["cmdline"]):
        if any(text in argument for argument in process.info["cmdline"] or ()):
            ids.append(process.pid)
    return ids
