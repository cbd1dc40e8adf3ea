"""Load generator: the figures of a server of known behaviour, and faults that must count."""

import json
from pathlib import Path

import pytest

from tests.stand_ins.openai import Behaviour, serve
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.load import main, run_load
from weighbridge.serving.load_figures import SpeedLimits, figures_of
from weighbridge.serving.load_streams import StreamedAnswer
from weighbridge.serving.openai_client import Payload


def payloads(count: int, *, chat: bool = True) -> list[Payload]:
    if chat:
        return [
            {"messages": [{"role": "user", "content": f"question {n}"}], "max_tokens": 8}
            for n in range(count)
        ]
    return [{"prompt": f"question {n}", "max_tokens": 8} for n in range(count)]


@pytest.mark.parametrize("chat", [True, False])
def test_every_payload_is_sent_once_and_every_token_counted(chat: bool) -> None:
    # Slow enough that four are under way together, also where the server gets little of the
    # processor.
    with serve(Behaviour(default="a b c d e", first_delay=0.3)) as server:
        figures = run_load(server.url, payloads(20, chat=chat), 4)
        prompts = [
            body["messages"][0]["content"] if chat else body["prompt"] for body in server.seen
        ]
    assert sorted(prompts) == sorted(f"question {n}" for n in range(20))
    assert (figures.requests, figures.errors) == (20, 0)
    assert server.most_at_once == 4


def test_times_are_those_of_the_server() -> None:
    with serve(Behaviour(default="a b c d e", first_delay=0.05, token_delay=0.02)) as server:
        figures = run_load(server.url, payloads(12), 2)
    assert figures.ttft_p50
    assert 0.05 <= figures.ttft_p50 < 0.1
    assert figures.itl_p50
    assert 0.019 <= figures.itl_p50 < 0.04
    assert figures.tpot_p50
    assert 0.019 <= figures.tpot_p50 < 0.04
    seconds_per_answer = 0.05 + 4 * 0.02
    assert figures.tokens_per_second == pytest.approx(2 * 5 / seconds_per_answer, rel=0.35)
    assert figures.requests_per_second == pytest.approx(2 / seconds_per_answer, rel=0.4)


def test_what_came_before_the_steady_span_is_told_as_warm_up() -> None:
    with serve(Behaviour(first_delay=0.1)) as server:
        figures = run_load(server.url, payloads(12), 3)
    # Those that ended before it, and those that had begun.
    assert 3 <= figures.warm_up_requests <= 5
    assert 0.1 <= figures.warm_up_seconds < 1
    assert figures.ttft
    assert figures.ttft.total == 12 - figures.warm_up_requests


def in_step(batches: int, streams: int, at: float) -> list[StreamedAnswer]:
    """What is seen at a moment of an engine that answers all streams together, a second each."""
    answers = []
    for number in range(batches * streams):
        started = float(number // streams)
        ended = started + 1 + 0.0001 * (number % streams)
        arrivals = [moment for moment in (started + 0.5, ended) if moment <= at]
        answers.append(
            StreamedAnswer(
                started,
                ended=ended if ended <= at else 0.0,
                arrivals=arrivals,
                pieces=[1] * len(arrivals),
                tokens=2,
                finished=ended <= at,
            )
        )
    return answers


def test_an_engine_that_answers_all_streams_in_step_is_called_neither_slower_nor_faster() -> None:
    # The first of the last eight has ended, and its stream finds nothing more to send.
    figures = figures_of(in_step(8, 8, at=8.00005), 8, 0.0, exhausted=8.00005, now=8.00005)
    assert figures.requests_per_second == pytest.approx(8, rel=0.01)
    assert figures.tokens_per_second == pytest.approx(16, rel=0.01)


def test_silence_until_the_time_is_over_belongs_to_the_span() -> None:
    figures = figures_of(in_step(8, 8, at=4.5), 8, 0.0, exhausted=11.0, now=11.0)
    assert figures.requests_per_second == pytest.approx(24 / 10, rel=0.01)


def test_streams_cut_anywhere_count_the_same() -> None:
    with serve(Behaviour(default="a b c d e", cut=7)) as server:
        figures = run_load(server.url, payloads(6), 1)
    assert figures.errors == 0
    assert figures.output_tokens / (figures.requests - 1) == 5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error_every", "HTTP 500: "),
        ("truncate_every", "Response payload is not completed"),
        ("unfinished_every", "the stream ended before the answer did"),
        ("break_every", "breaks off as it was told"),
    ],
)
def test_a_request_without_a_whole_answer_is_an_error(fault: str, said: str) -> None:
    with serve(Behaviour.of(fault, every=3)) as server:
        figures = run_load(server.url, payloads(12), 2)
    assert (figures.requests, figures.errors) == (12, 4)
    assert figures.first_error
    assert said in figures.first_error


def test_an_answer_that_takes_too_long_is_an_error() -> None:
    with serve(Behaviour(first_delay=1.0)) as server:
        figures = run_load(server.url, payloads(2), 1, timeout=0.2)
    assert figures.errors == 2
    assert figures.tokens_per_second == 0


def test_time_is_bounded_and_what_is_cut_off_is_no_error_but_counts() -> None:
    with serve(Behaviour(default=" ".join("x" * 8), token_delay=0.2)) as server:
        figures = run_load(server.url, payloads(50), 4, max_seconds=0.5, wait_for_silent=False)
    assert figures.seconds < 1
    assert figures.tokens_per_second > 0
    assert (figures.errors, figures.unfinished) == (0, 4)
    # None has ended: what is known of their pace is that so far.
    assert figures.tpot
    assert (figures.tpot.count, figures.tpot.open_count) == (0, 4)


@pytest.mark.parametrize("fault", ["hang_every", "stall_every"])
def test_an_engine_that_hangs_is_waited_for_until_it_is_an_error(fault: str) -> None:
    with serve(Behaviour.of(fault, every=6)) as server:
        figures = run_load(server.url, payloads(40), 4, max_seconds=2.0, timeout=2.5)
    # All four streams hang in the end, after 24 requests.
    assert (figures.requests, figures.errors, figures.unfinished) == (24, 4, 0)
    if fault == "hang_every":
        assert figures.ttft_p50 is not None
        assert figures.ttft_p95 is None


def test_without_waiting_what_hangs_stands_in_every_percentile_with_its_age() -> None:
    with serve(Behaviour(hang_every=6)) as server:
        figures = run_load(server.url, payloads(40), 4, max_seconds=2.0, wait_for_silent=False)
    assert (figures.errors, figures.unfinished) == (0, 4)
    assert figures.ttft_p95 is None
    assert figures.ttft
    assert figures.ttft.overruns(0.1)[0] == 4


def test_where_nothing_came_no_percentile_is_known() -> None:
    with serve(Behaviour(hang_every=1)) as server:
        figures = run_load(server.url, payloads(4), 2, max_seconds=0.1, timeout=0.2)
    assert figures.errors == figures.requests == 2
    assert figures.ttft_p50 is figures.ttft_p95 is figures.itl_p50 is figures.tpot_p50 is None
    assert figures.answer_tokens is None


def test_time_per_token_is_of_the_request_and_pieces_are_not_spread_out() -> None:
    words = " ".join("abcdefghijklmnop")
    # Long pauses: what a busy processor adds to one is little beside them.
    with serve(Behaviour(default=words, token_delay=0.1, per_piece=4)) as server:
        figures = run_load(server.url, [{**one, "max_tokens": 16} for one in payloads(6)], 1)
    assert figures.answer_tokens == 16
    assert figures.itl_p50
    assert 0.1 <= figures.itl_p50 < 0.15
    # Four pieces of four tokens: (last - first) / 15.
    assert figures.tpot_p50 == pytest.approx(3 * figures.itl_p50 / 15, rel=0.1)


def test_goodput_counts_answers_that_are_whole_and_in_time() -> None:
    with serve(Behaviour(first_delay=0.02, error_every=3)) as server:
        kept = run_load(server.url, payloads(12), 1, limits=SpeedLimits(ttft=1.0))
        late = run_load(server.url, payloads(12), 1, limits=SpeedLimits(ttft=0.01))
    assert kept.goodput == pytest.approx(kept.requests_per_second)
    assert kept.requests_per_second > 0
    assert late.goodput == 0


def test_it_goes_on_until_enough_requests_and_enough_time() -> None:
    with serve() as server:
        by_time = run_load(server.url, payloads(5000), 2, requests=4, seconds=0.3)
        by_count = run_load(server.url, payloads(5000), 2, requests=30, seconds=0)
    assert by_time.requests > 30
    assert 30 <= by_count.requests <= 32


def test_another_machine_is_not_put_under_load_unasked() -> None:
    with pytest.raises(BadInput, match="not on this machine"):
        run_load("http://example.org", payloads(8), 1)


def test_too_few_payloads_are_refused() -> None:
    with pytest.raises(BadInput, match="too few for 8 streams"):
        run_load("http://127.0.0.1:9", payloads(8), 8)


def test_nobody_there_is_said() -> None:
    with pytest.raises(Unavailable, match="asking http"):
        run_load("http://127.0.0.1:9", payloads(8), 1)


def test_the_command_prints_a_line_per_concurrency(capsys: pytest.CaptureFixture[str]) -> None:
    with serve() as server:
        main([server.url, "--concurrency", "1,2", "--requests", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["concurrency   1", "concurrency   2"]
    assert all("0 of 8 failed" in line for line in lines)


def test_the_command_asks_the_prompts_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question, answer = ({"role": who, "content": who} for who in ("user", "assistant"))
    rows = [{"messages": [question, answer]}, {"prompt": [question], "completion": [answer]}]
    (chats := tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (texts := tmp_path / "texts.jsonl").write_text('"one"\n{"prompt": "two"}\n')
    with serve() as server:
        for prompts in (chats, texts):
            options = ["--concurrency", "1", "--requests", "4", "--max-tokens", "3"]
            main([server.url, *options, "--prompts", str(prompts)])
    assert [body.get("messages") for body in server.seen[:4]] == [[question]] * 4
    assert sorted(body["prompt"] for body in server.seen[4:]) == ["one", "one", "two", "two"]
    assert {body["max_tokens"] for body in server.seen} == {3}
    assert capsys.readouterr().out.count("0 of 4 failed") == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or directory; check the path"),
        ("", "it is empty; give one JSON object a line"),
        ("{", "it is not JSON, line by line"),
        ('"a"\n{"messages": []}\n', "line 2: it has neither `messages` nor `prompt`"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "line 1: it has neither"),
    ],
)
def test_prompts_that_cannot_be_asked_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["http://127.0.0.1:1", "--prompts", str(path)])
    assert said in capsys.readouterr().err


def test_the_command_measures_at_rates_too(capsys: pytest.CaptureFixture[str]) -> None:
    with serve() as server:
        main([server.url, "--rate", "50,100", "--ttft", "2", "--requests", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["rate 50/s", "rate 100/s"]
    assert all("100.0% within, limits undecided" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concurrency", "x"], "argument --concurrency: 'x' is not a whole number from 1 on"),
        (["--concurrency", "1,0"], "argument --concurrency: '0' is not a whole number"),
        (["--rate", "5,abc", "--ttft", "1"], "argument --rate: 'abc' is not a number above 0"),
        (["--rate", "-5", "--ttft", "1"], "argument --rate: '-5' is not a number above 0"),
        (["--ttft", "0"], "argument --ttft: '0' is not a number above 0"),
        (["--ttft", "nan"], "argument --ttft: 'nan' is not a number above 0"),
        (["--percentile", "95"], "argument --percentile: '95' is not a number between 0 and 1"),
        (["--requests", "0"], "argument --requests: '0' is not a whole number from 1 on"),
        (["--max-seconds", "inf"], "argument --max-seconds: 'inf' is not a number above 0"),
    ],
)
def test_the_command_refuses_options_that_cannot_be(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["http://127.0.0.1:1", *options])
    assert said in capsys.readouterr().err


def test_the_command_says_in_one_line_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with serve() as server, pytest.raises(SystemExit) as ended:
        main([server.url, "--rate", "50", "--requests", "8"])
    assert ended.value.code == 2
    # The stand-in writes its log there as well.
    assert "\nerror: measuring at a rate: no limit of the time" in capsys.readouterr().err


@pytest.mark.parametrize(("cached", "share"), [(1, 0.5), (0, 0.0), (None, None)])
def test_what_a_prefix_cache_answered_is_told(cached: int | None, share: float | None) -> None:
    with serve(Behaviour(cached=cached)) as server:
        figures = run_load(server.url, payloads(4), 1)
    assert figures.cached_share == share
