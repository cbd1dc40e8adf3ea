"""Checks of what an engine endures: many clients, clients that leave, invalid requests."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from weighbridge.conformance.base import CheckFailed, CheckNotRun, Session, equal, eventually
from weighbridge.conformance.http_client import CHAT, ask, fetch, send, stream, streaming
from weighbridge.core.errors import Unavailable

AT_ONCE: Final = 16
LEAVERS: Final = 6
"""Clients that hang up at once."""
TOO_FAST: Final = 0.3
"""Seconds that a few whole answers must take for it to show whether somebody broke them off."""
REQUEST_GAUGES: Final = re.compile(
    r"requests?_(running|processing)|batch_current_size|requests_deferred"
)
"""What the gauges of requests under way are called, by vLLM, llama.cpp, TGI and the shim."""
INVALID_REQUESTS: Final[Mapping[str, bytes]] = {
    "half an object": b'{"messages": [',
    "no object": b"[1, 2]",
    # No UTF-8.
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "no messages": b'{"model": "model"}',
    "messages that are none": b'{"model": "model", "messages": "hello"}',
    "a message without content": b'{"model": "model", "messages": [{"role": 5}]}',
    "a word for a number": (
        b'{"model": "model", "messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}'
    ),
}


def at_once(session: Session) -> str:
    """Check that sixteen clients at once all get their answers."""
    questions = session.reference.finite

    def answer(number: int) -> None:
        question = questions[number % len(questions)]
        streams = number % 2 and session.engine.capabilities.streaming
        reply = (stream if streams else ask)(session, question)
        equal(reply.text, question.answer, f"'{question.name}', {AT_ONCE} at once")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(answer, range(AT_ONCE)))
    return f"{AT_ONCE} answers right"


def client_gone(session: Session) -> str:
    """Check that clients that hang up in the middle of long answers leave their slots to others."""
    whole = _seconds(session, leave=False)
    # Measured here and now: how long an answer takes depends on engine and machine.
    if whole < TOO_FAST:
        raise CheckNotRun(f"{LEAVERS} long answers take {whole:.2f} s together: too fast to tell")
    _seconds(session, leave=True)
    started = time.monotonic()
    # Where slots are still taken, this one waits for them: the time shows it without any metrics.
    ask(session, session.reference.question("greeting"), max_tokens=1)
    # Gauges may lag behind: they are asked until they agree, or as long as answers would take.
    idle = eventually(lambda: not _under_way(session), whole, poll=0.02)
    seconds = time.monotonic() - started
    if not idle or seconds > whole / 2:
        raise CheckFailed(
            f"{LEAVERS} clients left, and {seconds:.1f} s later their answers, {whole:.1f} s long, "
            "still went on"
        )
    return f"free {seconds:.2f} s after {LEAVERS} clients left answers that take {whole:.1f} s"


def bad_json(session: Session) -> str:
    """Check that invalid requests are refused as the client's fault, and the next is answered."""
    statuses = {name: send(session, CHAT, body)[0] for name, body in INVALID_REQUESTS.items()}
    wrong = [
        f"{name}: HTTP {status}" for name, status in statuses.items() if not 400 <= status < 500
    ]
    if wrong:
        raise CheckFailed(", ".join(wrong))
    _still_answers(session)
    codes = ", ".join(map(str, sorted(set(statuses.values()))))
    return f"{len(statuses)} kinds of nonsense refused with HTTP {codes}"


def too_long(session: Session) -> str:
    """Check that a prompt longer than the context is refused as the client's fault, and the next
    one is answered.
    """
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": "word " * session.reference.context * 4}],
    }
    status, content = send(session, CHAT, body)
    if not 400 <= status < 500:
        raise CheckFailed(f"HTTP {status}: {str(content)[:160]}")
    _still_answers(session)
    return f"refused with HTTP {status}"


def metrics(session: Session) -> str:
    """Check that counters in Prometheus' form grow with what is answered."""
    before = _figures(fetch(session, "/metrics"))
    ask(session, session.reference.question("counting"))
    grown: Sequence[str] = []

    def count() -> bool:
        nonlocal grown
        after = _figures(fetch(session, "/metrics"))
        grown = [
            name for name, value in after.items() if value > before.get(name, 0) and "token" in name
        ]
        return bool(grown)

    # Figures may lag behind, as gauges do.
    if not eventually(count, 10, poll=0.2):
        raise CheckFailed(f"none of {len(before)} figures counts the tokens of an answer")
    return f"{len(grown)} figures of tokens grow, such as {min(grown, key=len)}"


def _seconds(session: Session, *, leave: bool) -> float:
    """Return how long a few endless answers take together: to the end of the context, or until
    every client has left.
    """
    question = session.reference.question("endless")

    def listen(_: int) -> None:
        with streaming(session, question, max_tokens=session.reference.context) as events:
            for event in events:
                if leave and _says_something(event):
                    return

    started = time.monotonic()
    with ThreadPoolExecutor(LEAVERS) as pool:
        list(pool.map(listen, range(LEAVERS)))
    return time.monotonic() - started


def _says_something(event: Mapping[str, Any]) -> bool:
    return any((choice.get("delta") or {}).get("content") for choice in event.get("choices", []))


def _under_way(session: Session) -> float:
    """Return how many requests the engine says it works on; 0 where it does not say."""
    if not session.engine.capabilities.metrics:
        return 0
    figures: dict[str, float] = {}
    with suppress(CheckFailed, Unavailable):  # without such a page the check of metrics fails
        figures = _figures(fetch(session, "/metrics"))
    return sum(value for name, value in figures.items() if REQUEST_GAUGES.search(name))


def _figures(page: str) -> dict[str, float]:
    """Return every sample of a page of metrics."""
    samples = {}
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            with suppress(ValueError):
                samples[name] = float(value)
    return samples


def _still_answers(session: Session) -> None:
    question = session.reference.question("greeting")
    equal(ask(session, question).text, question.answer, "the answer after it")
