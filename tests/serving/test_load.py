"""Load generator: the figures of a server of known behaviour, and faults that must count."""

import pytest

from tests.stand_ins.openai import Behaviour, serve
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.load import main, run_load
from weighbridge.serving.load_figures import percentile
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
    assert 0.05 <= figures.ttft_p50 < 0.1
    assert 0.019 <= figures.itl_p50 < 0.04
    seconds_per_answer = 0.05 + 4 * 0.02
    assert figures.tokens_per_second == pytest.approx(2 * 5 / seconds_per_answer, rel=0.35)
    assert figures.requests_per_second == pytest.approx(2 / seconds_per_answer, rel=0.4)


def test_streams_cut_anywhere_count_the_same() -> None:
    with serve(Behaviour(default="a b c d e", cut=7)) as server:
        figures = run_load(server.url, payloads(6), 1)
    assert figures.errors == 0
    assert figures.output_tokens / (figures.requests - 1) == 5


@pytest.mark.parametrize(
    "fault", ["error_every", "truncate_every", "unfinished_every", "break_every"]
)
def test_a_request_without_a_whole_answer_is_an_error(fault: str) -> None:
    with serve(Behaviour.of(fault, every=3)) as server:
        figures = run_load(server.url, payloads(12), 2)
    assert (figures.requests, figures.errors) == (12, 4)


def test_an_answer_that_takes_too_long_is_an_error() -> None:
    with serve(Behaviour(first_delay=1.0)) as server:
        figures = run_load(server.url, payloads(2), 1, timeout=0.2)
    assert figures.errors == 2
    assert figures.tokens_per_second == 0


def test_time_is_bounded_and_what_is_dropped_is_no_error() -> None:
    with serve(Behaviour(default=" ".join("x" * 8), token_delay=0.2)) as server:
        figures = run_load(server.url, payloads(50), 4, max_seconds=0.5)
    assert figures.seconds < 1
    assert figures.tokens_per_second > 0


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


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0


def test_the_command_prints_a_line_per_concurrency(capsys: pytest.CaptureFixture[str]) -> None:
    with serve() as server:
        main([server.url, "--concurrency", "1,2", "--requests", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["concurrency   1", "concurrency   2"]
    assert all("0 of 8 failed" in line for line in lines)
