"""What a check is, what its result holds, and the running engine that it looks at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from weighbridge.conformance.reference import Reference
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.formatting import one_line
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.base import Engine, EngineArgs, Feature, engine_for

CheckVerdict = Literal["passed", "known not to", "failed", "not run"]


class CheckFailed(Exception):
    """The engine does not do what it claims; the message says what it did instead."""


class CheckNotRun(Exception):
    """The check cannot decide here; the message says why."""


@dataclass(frozen=True)
class Subject:
    """What is checked: an engine's arguments, and one model as artifact and as reference."""

    args: EngineArgs
    model: Path
    reference: Reference
    cache: Path
    logs: Path
    """Folder that takes what the engine prints."""

    @property
    def engine(self) -> Engine:
        return engine_for(self.args)


@dataclass
class Session:
    """A running engine, started again where a check has ended it."""

    subject: Subject
    timeout: float = 120.0
    """Seconds one request may take."""
    load_seconds: float = 0.0
    starts: int = 0
    ending: tuple[float | None, str | None] | None = None
    """The result of SIGTERM, for the two checks that look at it: seconds until the engine had ended
    (None: it had not), and what cut off the answer under way (None: nothing).
    """
    _stack: ExitStack = field(default_factory=ExitStack)
    _running: Running | None = None

    @property
    def engine(self) -> Engine:
        return self.subject.engine

    @property
    def reference(self) -> Reference:
        return self.subject.reference

    @property
    def running(self) -> Running:
        """Start the engine unless it runs. Raises Unavailable where it does not start."""
        if self._running is None or not self._running.process.alive():
            self.stop()
            self.starts += 1
            subject = self.subject
            log = subject.logs / f"{subject.args.kind}-{self.starts}.log"
            # Logs are appended to: the end of an older one would be read as this engine's last
            # words.
            log.unlink(missing_ok=True)
            self._running = self._stack.enter_context(
                serve(subject.model, subject.args, subject.cache, log)
            )
            self.load_seconds = self._running.load_seconds
        return self._running

    @property
    def url(self) -> str:
        return self.running.url

    def last_words(self, patience: float = 0.5) -> str | None:
        """Return the end of its log where the engine has ended; None while it runs.

        Waits a little: an engine's connections break a moment before it has ended.
        """
        if self._running is None:
            return None
        deadline = time.monotonic() + patience
        while self._running.process.alive():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        return self._running.process.tail(3) or "it said nothing"

    def stop(self) -> None:
        """Stop the engine; the next check that needs one starts it again."""
        self._running = None
        self._stack.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Check:
    """One thing that an engine is held to."""

    name: str
    title: str
    run: Callable[[Session], str]
    """Returns one line about what was seen; raises CheckFailed or CheckNotRun."""
    needs: Feature | None = None
    """What an engine must claim to be held to it; None: every engine is."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    title: str
    verdict: CheckVerdict
    why: str
    """One line."""
    seconds: float = 0.0


def run_check(check: Check, session: Session) -> CheckResult:
    """Run one check; whatever happens, the next one finds an engine that can be asked."""
    if reason := not_claimed(check, session.engine):
        return CheckResult(check.name, check.title, "known not to", reason)
    started = time.monotonic()
    verdict, why = _judge(check, session)
    # A check that passed has seen to the end of what it started itself.
    if verdict == "failed" and (log_end := session.last_words()):
        why = f"{why}; the engine died: {log_end}"
    return CheckResult(check.name, check.title, verdict, _line(why), time.monotonic() - started)


def _judge(check: Check, session: Session) -> tuple[CheckVerdict, str]:
    try:
        return "passed", check.run(session)
    except CheckNotRun as exc:
        return "not run", str(exc)
    # What an engine's base class raises for what an API has no call for, such as tokens.
    except NotImplementedError:
        return "known not to", "its API cannot tell"
    except (CheckFailed, WeighbridgeError) as exc:
        return "failed", str(exc)


def not_claimed(check: Check, engine: Engine) -> str | None:
    """Return why the engine is not held to a check; None where it is."""
    if reason := engine.capabilities.lacks.get(check.name):
        return reason
    if check.needs and not engine.capabilities.offers(check.needs):
        return f"it does not offer {check.needs}"
    return None


def equal(actual: object, expected: object, what: str) -> None:
    """Raise CheckFailed where two things differ."""
    if actual != expected:
        raise CheckFailed(f"{what}: {_short(actual)} instead of {_short(expected)}")


def eventually(holds: Callable[[], object], seconds: float, poll: float = 0.05) -> bool:
    """Whether a condition comes to hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll)
    return True


def _line(text: str) -> str:
    line = one_line(text)
    # Both ends: the one says what was asked, the other is where an engine gives its reason.
    return line if len(line) <= 400 else f"{line[:240]} … {line[-140:]}"


def _short(value: object) -> str:
    # As the API says it: `null`, not `None`.
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else f"{text[:70]} … {text[-40:]}"
