"""The suite finds nothing wrong with an engine that does all right, and of one with a fault just
what is wrong.
"""

import json
from pathlib import Path

import psutil
import pytest

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs, StandInEngine
from tests.stand_ins.openai import FLAWS
from weighbridge.conformance import lifecycle_checks, suite
from weighbridge.conformance.base import CheckResult, Subject
from weighbridge.conformance.reference import Question, Reference, Scored, Tokens
from weighbridge.core import plugins
from weighbridge.core.settings import Settings

CONTEXT = 500
LONG = " ".join(["la"] * 400)
CHATS = {
    "greeting": (["Hello!"], "Hello, how can I help you today?"),
    "counting": (["Count to ten."], "one two three four five six seven eight nine ten"),
    "unicode": (["Write in many alphabets."], "naïve café – 日本語 🙂🚀 привет"),
    "endless": (["Sing."], LONG),
    "plainly": (["What is this?"], "This is a kettle."),
    "system": (["Answer in German.", "What is this?"], "Das ist ein Kessel."),
}
PLAIN = ("The quick brown fox", "jumps over the lazy dog.")
GOOD = StandInArgs(token_delay=0.002, context=CONTEXT, drains=True, threads=2)
STREAMED = {
    "chat_stream",
    "completion_stream",
    "usage_stream",
    "stop",
    "unicode",
    "at_once",
    "client_gone",
    "drain",
}


def question(name: str, said: list[str], answer: str) -> Question:
    """Of the stand-in, whose tokens are words."""
    roles = ["system", "user"][-len(said) :]
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    words = len("\n".join(said).split())
    return Question(
        name=name,
        prompt=messages,
        prompt_ids=list(range(words)),
        answer=answer,
        answer_ids=[0] * len(answer.split()),
    )


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)
    monkeypatch.setattr(lifecycle_checks, "GRACE", 4.0)
    answers = {"\n".join(said): answer for said, answer in CHATS.values()} | {PLAIN[0]: PLAIN[1]}
    open_question = "Tell me of a lighthouse, 7 boats and the weather."
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.gguf").write_text(json.dumps(answers | {open_question: " ".join("abcdefgh")}))
    questions = [question(name, said, answer) for name, (said, answer) in CHATS.items()]
    plain = Question(
        name="completion", prompt=PLAIN[0], prompt_ids=[0] * 4, answer=PLAIN[1], answer_ids=[0] * 5
    )
    scored = [Scored(prompt_ids=[1], ids=[2], logprobs=[-1.0])]
    texts = [Tokens(text="three word text", ids=[5, 4, 4])]
    reference = Reference(
        made_by="a table",
        context=CONTEXT,
        texts=texts,
        questions=[*questions, plain],
        scored=scored,
    )
    return Subject(GOOD, model, reference, Settings().cache, tmp_path / "logs")


def outcomes(subject: Subject, args: StandInArgs) -> dict[str, CheckResult]:
    held = Subject(args, subject.model, subject.reference, subject.cache, subject.logs)
    # Fixtures of other tests may have processes of their own.
    before = set(psutil.Process().children(recursive=True))
    found = {outcome.check: outcome for outcome in suite.run(held)}
    assert list(found) == [check.name for check in suite.CHECKS]
    assert not set(psutil.Process().children(recursive=True)) - before
    assert all(outcome.why and "\n" not in outcome.why for outcome in found.values())
    return found


def failed(found: dict[str, CheckResult]) -> set[str]:
    return {name for name, outcome in found.items() if outcome.verdict == "failed"}


def test_what_does_all_right_passes_all_that_it_claims(subject: Subject) -> None:
    found = outcomes(subject, GOOD)
    others = {
        name: outcome.verdict for name, outcome in found.items() if outcome.verdict != "passed"
    }
    assert others == {"chat_template": "known not to", "logprobs": "known not to"}


BROKEN_BY = {
    "wrong_usage": {"usage", "usage_stream"},
    "silent_usage": {"usage_stream"},
    "no_stop": {"stop"},
    "stop_included": {"stop"},
    "no_max_tokens": {"max_tokens"},
    "no_seed": {"seed"},
    "no_sampling": {"seed"},
    "no_system": {"system", "greedy", "usage", "at_once"},
    "torn": {"unicode"},
    "one_piece": {"chat_stream", "completion_stream"},
    "dies_of_nonsense": {"bad_json"},
    "blames_itself": {"bad_json"},
    "any_length": {"too_long"},
    "no_metrics": {"metrics"},
    "deaf": {"client_gone"},
    "starts_anyhow": {"failed_start"},
    "ignores_sigterm": {"sigterm"},
    "leaves_child": {"sigterm", "orphans"},
}
TOGETHER = (
    ("wrong_usage", "no_stop", "no_seed"),
    ("silent_usage", "stop_included", "dies_of_nonsense"),
    ("no_sampling", "one_piece", "any_length"),
    ("no_system", "blames_itself", "starts_anyhow"),
    ("torn", "no_metrics", "leaves_child"),
    ("deaf", "no_max_tokens"),
    ("ignores_sigterm",),
)
"""Faults whose checks have nothing in common, in one run: each must fail its own, and nothing else
may.
"""


def test_every_flaw_of_the_stand_in_is_tried_once() -> None:
    assert (
        sorted(flaw for flaws in TOGETHER for flaw in flaws) == sorted(FLAWS) == sorted(BROKEN_BY)
    )


@pytest.mark.parametrize("flaws", TOGETHER, ids="-".join)
def test_faults_fail_the_checks_of_what_they_break_and_no_others(
    flaws: tuple[str, ...], subject: Subject
) -> None:
    broken = [BROKEN_BY[flaw] for flaw in flaws]
    assert sum(map(len, broken)) == len(set().union(*broken))
    assert failed(outcomes(subject, GOOD.model_copy(update={"flaws": flaws}))) == set().union(
        *broken
    )


@pytest.mark.parametrize("fault", ["truncate_every", "unfinished_every"])
def test_streams_that_break_off_fail_whatever_is_streamed_to_its_end(
    fault: str, subject: Subject
) -> None:
    assert (
        failed(outcomes(subject, GOOD.model_copy(update={fault: 1, "drains": False}))) == STREAMED
    )


def test_what_does_not_start_is_told_once_with_its_last_words(subject: Subject) -> None:
    found = outcomes(
        subject, GOOD.model_copy(update={"die_loading": "not enough memory for 80 layers"})
    )
    assert "not enough memory for 80 layers" in found["start"].why
    assert failed(found) == {"start"}
    assert {outcome.verdict for name, outcome in found.items() if name != "start"} == {"not run"}


def test_one_that_dies_is_started_again_for_the_next_check(subject: Subject) -> None:
    found = outcomes(subject, GOOD.model_copy(update={"die_after": 12}))
    assert "dies as it was told" in " ".join(outcome.why for outcome in found.values())
    assert found["chat"].verdict == found["failed_start"].verdict == "passed"
    assert 0 < len(failed(found)) < len(suite.CHECKS)


def test_what_an_engine_says_it_lacks_is_not_held_against_it(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge.serving.engines.base import Capabilities

    modest = Capabilities(streaming=False, lacks={"seed": "it draws as it likes"})
    monkeypatch.setattr(StandInEngine, "capabilities", modest)
    found = outcomes(
        subject, GOOD.model_copy(update={"flaws": ("no_seed", "no_metrics"), "truncate_every": 1})
    )
    assert failed(found) == set()
    assert (found["seed"].verdict, found["seed"].why) == ("known not to", "it draws as it likes")
    for check in suite.CHECKS:
        if check.needs:
            assert found[check.name].verdict == "known not to"
