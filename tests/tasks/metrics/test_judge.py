"""The judge: its grades and nothing else of its replies; what it does not say is unknown."""

import contextlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from tests.stand_ins import http_server
from weighbridge.core.errors import Unavailable
from weighbridge.tasks.data import Row
from weighbridge.tasks.metrics import judge
from weighbridge.tasks.metrics.base import Question, Score, load_metric
from weighbridge.tasks.metrics.judge import Judge, JudgeArgs, cohens_kappa
from weighbridge.tasks.scoring import score_rows

KEY = "sk-secret-of-the-judge"
Says = Callable[[str, int], str | tuple[int, str]]
"""From a prompt and the number of the request to a reply, or a status and an error."""


class Server(http_server.Server):
    def __init__(self, says: Says) -> None:
        super().__init__(Handler)
        self.says, self.bodies, self.keys = says, list[dict[str, Any]](), list[str | None]()

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


class Handler(http_server.Handler):
    server: Server

    def do_GET(self) -> None:
        self.answer_json({"data": [{"id": "the-judge"}]})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        said = self.server.says(body["messages"][0]["content"], len(self.server.bodies))
        if isinstance(said, tuple):
            self.answer_json({"error": {"message": said[1]}}, status=said[0])
            return
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 90, "completion_tokens": 10}
        self.answer_json({"choices": [choice], "usage": usage})


@pytest.fixture
def serving() -> Iterator[Callable[[Says], Server]]:
    with contextlib.ExitStack() as stack:
        yield lambda says: stack.enter_context(Server(says))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "WAIT", 0.0)
    # Ports are used again, by other judges.
    judge._graded.cache_clear()


def by_answer(grades: dict[str, str]) -> Says:
    def says(prompt: str, _: int) -> str:
        answer = re.search(r"Answer to grade:\n(.*)", prompt)
        assert answer
        return grades[answer[1]]

    return says


def score(server: Server, *answers: str, **options: Any) -> Score:
    args = JudgeArgs.model_validate({"url": server.url, "streams": 1, **options})
    questions = [Question(f"task {place}", answer) for place, answer in enumerate(answers)]
    return Judge().score(args, questions, ["the reference"] * len(answers))


def test_grades_become_shares_of_the_scale(serving: Callable[[Says], Server]) -> None:
    server = serving(by_answer({"bad": "1", "fair": " 3\n", "good": "5"}))
    graded = score(server, "bad", "fair", "good", model="gpt", again=0)
    assert graded.per_example == [0, 0.5, 1]
    assert graded.value == 0.5
    body = server.bodies[1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt", 0, 16)
    for part in ("task 1", "the reference", "fair", "from 1", "to 5"):
        assert part in body["messages"][0]["content"]


@pytest.mark.parametrize("reply", ["five", "5/5", "Grade: 4", "6", "0", "-1", "4.5", "", "4 5"])
def test_a_reply_that_is_no_grade_is_asked_for_again_and_then_unknown(
    reply: str, serving: Callable[[Says], Server]
) -> None:
    server = serving(lambda prompt, _: reply)
    graded = score(server, "a", again=0)
    assert math.isnan(graded.per_example[0])
    assert len(server.bodies) == 2
    second = serving(lambda prompt, number: reply if number == 1 else "4")
    assert score(second, "a", again=0).per_example == [0.75]


def test_its_agreement_with_itself_and_its_cost_are_told(serving: Callable[[Says], Server]) -> None:
    # Ten answers once, then four of them again: it changes its mind on the first.
    server = serving(lambda prompt, number: "5" if number % 2 or number == 12 else "1")
    graded = score(
        server, *(f"a{n}" for n in range(10)), again=4, model="m", price_per_million_tokens=2
    )
    said = "; ".join(graded.notes)
    assert "graded by m at http://127.0.0.1" in said
    assert re.search(r"asked twice about 4 rows, it gave the same grade to [0-4]", said)
    assert "14 different answers, 1,400 tokens, a cost of 0.0028" in said


def test_equal_answers_are_asked_about_once(serving: Callable[[Says], Server]) -> None:
    server = serving(lambda prompt, _: "4")
    for _ in range(2):
        score(server, "a", again=1)
    assert len(server.bodies) == 2


def test_kappa_is_cohens() -> None:
    """The usual textbook example."""
    pairs: list[tuple[int | None, int | None]] = [
        *[(1, 1)] * 20,
        *[(1, 2)] * 5,
        *[(2, 1)] * 10,
        *[(2, 2)] * 15,
    ]
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([(5, 5)] * 9) is None


def test_a_judge_that_is_down_is_unknown_and_not_zero(
    serving: Callable[[Says], Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = serving(lambda prompt, _: (503, "overloaded"))
    rows = [Row(prompt="q", completion="b", id="x")]
    missing: dict[str, str] = {}
    with caplog.at_level(logging.WARNING):
        scores = score_rows([JudgeArgs(url=server.url)], ["a"], rows, None, missing=missing)
    assert scores == {}
    assert "HTTP 503: overloaded" in missing["judge"]
    assert len(server.bodies) == 3
    assert "metric judge left out: asking the judge" in caplog.text
    with pytest.raises(Unavailable):
        score_rows([JudgeArgs(url=server.url)], ["a"], rows, None)


def test_its_key_goes_to_it_alone(
    serving: Callable[[Says], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serving(lambda prompt, _: (401, f"Incorrect API key provided: {KEY}"))
    with pytest.raises(Unavailable) as caught:
        score(server, "a", api_key_env="JUDGE_KEY", again=0)
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in str(caught.value)
    assert "Incorrect API key provided: …" in str(caught.value)
    assert KEY not in JudgeArgs(api_key_env="JUDGE_KEY").model_dump_json()


def test_what_cannot_be_asked_is_refused_before_anything_is_made(
    serving: Callable[[Says], Server],
) -> None:
    Judge().check(JudgeArgs(url=serving(lambda prompt, _: "1").url))
    with pytest.raises(Unavailable, match="NO_SUCH_KEY is not set"):
        Judge().check(JudgeArgs(api_key_env="NO_SUCH_KEY"))
    with pytest.raises(Unavailable, match=r"asking http://127\.0\.0\.1:1"):
        Judge().check(JudgeArgs(url="http://127.0.0.1:1/v1"))


def test_an_answer_cannot_fill_in_the_prompt(serving: Callable[[Says], Server]) -> None:
    server = serving(lambda prompt, _: "4")
    score(server, "{reference} {scale}", again=0)
    assert "Answer to grade:\n{reference} {scale}\n" in server.bodies[0]["messages"][0]["content"]


def test_options_that_cannot_be_right_are_refused() -> None:
    assert load_metric("judge").Args is JudgeArgs
    with pytest.raises(ValidationError, match=r"no \{answer\} in it"):
        JudgeArgs(prompt="Is it good?")
    with pytest.raises(ValidationError, match="String should match pattern"):
        JudgeArgs(url="http://user:password@host/v1")
